"""Print, as a Markdown table, which mechanisms each check isolates, in their order."""

import ast
import inspect
import textwrap

import exercise_checks


def mechanisms(check):
    """The names that the generator of a check yields, read off its code."""
    code = ast.parse(textwrap.dedent(inspect.getsource(check.mechanisms)))
    yields = [node for node in ast.walk(code) if isinstance(node, ast.Yield)]
    return [node.value.value for node in sorted(yields, key=lambda node: node.lineno)]


if __name__ == "__main__":
    print("| check | what it isolates |\n|---|---|")
    for check in vars(exercise_checks).values():
        if isinstance(check, exercise_checks.exercise):
            print(f"| {check.__name__} | {'; '.join(mechanisms(check))} |")
