"""``lorasweep completion``: scripts that make bash and zsh complete commands, groups, keys and values."""

from sweeps.commands.parser import Parser

EXAMPLES = """\
bash, in ~/.bashrc:   eval "$(lorasweep completion bash)"
zsh, in ~/.zshrc:     eval "$(lorasweep completion zsh)"
"""


def main(arguments: list[str]) -> int:
    parser = Parser("completion", "Print a script that makes the shell complete lorasweep's command line.", EXAMPLES)
    parser.add_argument("shell", choices=["bash", "zsh", "at"], metavar="bash|zsh", help="which shell")
    parser.add_argument("line", nargs="?", default="", help="(at: for the scripts) the command line up to the cursor")
    options = parser.read(arguments)
    from sweeps.commands import shell_completion

    if options.shell == "at":
        print("\n".join(shell_completion.completions(options.line)))
    else:
        print(shell_completion.BASH if options.shell == "bash" else shell_completion.ZSH, end="")
    return 0
