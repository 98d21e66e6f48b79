"""How scripts end: exit code, and one line on stderr for a user's mistake."""

import pytest

from cropvlm.cli import COMPLETE_WITH_FAILURES, USER_ERROR, ArgumentParser, UserError, run


def exit_code(main) -> int:
    with pytest.raises(SystemExit) as caught:
        run(main)
    return caught.value.code


def raising(error: Exception):
    def main():
        raise error

    return main


def test_the_exit_codes_are_those_of_the_design():
    assert (USER_ERROR, COMPLETE_WITH_FAILURES) == (2, 3)


@pytest.mark.parametrize(("result", "code"), [(None, 0), (0, 0), (COMPLETE_WITH_FAILURES, 3)])
def test_the_result_of_main_is_the_exit_code(result, code, capsys):
    assert exit_code(lambda: result) == code
    assert capsys.readouterr().err == ""


def test_a_mistake_of_the_users_is_one_line_and_code_2(capsys):
    assert exit_code(raising(UserError("split 'tset' is not there;\n  there are:\n\ttest, train"))) == 2
    out, err = capsys.readouterr()
    assert err == "error: split 'tset' is not there; there are: test, train\n"
    assert out == ""


def test_a_wrong_flag_is_one_line_without_the_usage_block(capsys):
    assert exit_code(lambda: ArgumentParser("A script.").parse_args(["--colour", "red"])) == 2
    assert capsys.readouterr().err == "error: unrecognized arguments: --colour red; --help lists the flags\n"


@pytest.mark.parametrize("error", [ValueError("a bug"), RuntimeError("a bug"), KeyboardInterrupt()])
def test_anything_else_keeps_its_traceback(error):
    with pytest.raises(type(error)) as caught:
        run(raising(error))
    assert caught.value is error
