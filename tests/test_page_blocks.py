"""Commands are read from pages as a shell would read them."""

from __future__ import annotations

from tests.page_blocks import commands


def test_commands_of_a_script() -> None:
    script = """\
# a comment; not a command
maskloom train CONFIG a.b=1 \\
    --processes 2  # it's two
PY=x CUDA_VISIBLE_DEVICES= python -m x "a # b; c" 'd' > out.txt 2>&1 && mkdir -p a/b; cd a/b | cat
cat > run.yaml <<'END'
not: a command
END
for step in 1 2; do
  echo "$step" &
done
python -c "one
two"
"""
    assert list(commands(script)) == [
        ["maskloom", "train", "CONFIG", "a.b=1", "--processes", "2"],
        ["python", "-m", "x", "a # b; c", "d"],
        ["mkdir", "-p", "a/b"],
        ["cd", "a/b"],
        ["cat"],
        ["cat"],
        ["for", "step", "in", "1", "2"],
        ["echo", "$step"],
        ["done"],
        ["python", "-c", "one\ntwo"],
    ]
