"""The libraries' words: in the sweep's log, not on the terminal."""

import logging
import warnings

import pytest

from sweeps.process.logs import to_file


@pytest.fixture(autouse=True)
def levels():
    """As libraries have them at first: other tests, and the libraries themselves, set them for the whole process."""
    loggers = [
        logging.getLogger(name) for name in ("ray", "ray.tune", "transformers", "transformers.modeling", "wandb")
    ]
    before = [(logger.level, logger.disabled, logger.propagate) for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.WARNING)
        logger.disabled, logger.propagate = False, True
    yield
    for logger, (level, disabled, propagate) in zip(loggers, before, strict=True):
        logger.setLevel(level)
        logger.disabled, logger.propagate = disabled, propagate


def test_what_libraries_log_and_warn_of_goes_to_the_file_alone(tmp_path, capsys) -> None:
    log = tmp_path / "lorasweep.log"
    logger = logging.getLogger("transformers")
    before = logger.handlers[:], logger.propagate
    with to_file(log):
        logging.getLogger("ray.tune").warning("a trial was lost")
        logging.getLogger("wandb").debug("settings")
        logging.getLogger("transformers.modeling").warning("some weights are new")
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            warnings.warn("deprecated", UserWarning, stacklevel=1)
    written = log.read_text()
    assert all(word in written for word in ("a trial was lost", "some weights are new", "deprecated", "ray.tune"))
    assert "settings" not in written
    out, err = capsys.readouterr()
    assert (out, err) == ("", "")
    assert (logger.handlers, logger.propagate) == before


def test_verbose_shows_it_too(tmp_path, capsys) -> None:
    with to_file(tmp_path / "log", verbose=True):
        logging.getLogger("wandb").warning("offline")
    assert "offline" in capsys.readouterr().err
    assert "offline" in (tmp_path / "log").read_text()


def test_nothing_said_makes_no_file(tmp_path) -> None:
    with to_file(tmp_path / "log"):
        pass
    assert not (tmp_path / "log").exists()


@pytest.mark.parametrize("place", ["/dev/full", "gone/lorasweep.log"])
def test_a_log_that_cannot_be_written_fails_nobody_and_hides_no_error(place: str, tmp_path, capsys) -> None:
    """A full disk, and a folder that is not there any more."""

    def run() -> None:
        with to_file(tmp_path / place):
            for number in range(3):
                logging.getLogger("ray.tune").warning("trial %s: %s", number, "x" * 10_000)
            raise OSError("what is really wrong")

    with pytest.raises(OSError, match="what is really wrong"):
        run()
    assert capsys.readouterr() == ("", "")
