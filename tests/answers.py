"""The register of answers to the exercises, beside the mistakes that the checks know themselves.

    @right(check.name)                          the check must say "Solved."
    @wrong(check.name, "words of the message")  the check must refuse it with this message

Right answers in many styles, and wrong ones that are found by what they do, not by their result.
Both also take a value: right(check.name)(3.14).
"""

RIGHT, WRONG = [], []


def right(check):
    def register(answer):
        RIGHT.append((check, answer))
        return answer

    return register


def wrong(check, message):
    def register(answer):
        WRONG.append((check, answer, message))
        return answer

    return register
