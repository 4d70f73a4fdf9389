"""20 Newsgroups as a task: topics, label words, and rows drawn once and for all."""

from collections import Counter
from dataclasses import replace
from typing import Any

import pandas as pd
import pytest

from analysis.errors import DataError
from trainer.assets.packages import fetch
from trainer.config import DataConfig
from trainer.data.dataset import Dataset, load_dataset, load_test

TOPICS = {"sci.med": "medicine", "sci.space": "space", "rec.autos": "cars", "sci.crypt": "secrets"}


def newsgroups(**keys: Any) -> Dataset:
    return load_dataset(DataConfig(source="newsgroups", **keys), report=print)


def test_all_topics_are_read_as_an_independent_reader_reads_them() -> None:
    dataset = newsgroups()
    for split, rows in (("train", dataset.train), ("test", dataset.validation)):
        path = fetch("newsgroups", print) / f"20newsgroups-{split}.tab"
        frame = pd.read_csv(path, sep="\t", skiprows=[1, 2], quoting=3, dtype=str, keep_default_na=False)
        assert [row.text for row in rows] == frame["Text"].tolist()
        endings = zip((row.label for row in rows), frame["Category"], strict=True)
        assert all(category == label or category.endswith(f".{label}") for label, category in endings)
    assert (len(dataset.train), len(dataset.validation), len(dataset.labels)) == (11_293, 7_528, 20)


def test_topics_that_end_alike_stay_apart() -> None:
    labels = newsgroups().labels
    assert {"talk.politics.misc", "talk.religion.misc", "comp.os.ms-windows.misc", "space", "mideast"} <= set(labels)


def test_chosen_topics_have_their_words_and_row_numbers() -> None:
    dataset = newsgroups(topics=TOPICS, train_rows=50, validation_rows=20)
    assert dataset.labels == ("cars", "medicine", "secrets", "space")
    assert Counter(row.label for row in dataset.train) == dict.fromkeys(TOPICS.values(), 50)
    assert Counter(row.label for row in dataset.validation) == dict.fromkeys(TOPICS.values(), 20)


def test_rows_are_drawn_the_same_each_time_and_fewer_are_part_of_more() -> None:
    few, more = newsgroups(topics=TOPICS, train_rows=20), newsgroups(topics=TOPICS, train_rows=60)
    assert newsgroups(topics=TOPICS, train_rows=20) == few
    assert set(few.train) < set(more.train) < set(newsgroups(topics=TOPICS).train)
    assert few.fingerprint == "c245a2f077674f9ad6fab59f8053fd715ece173f976747effa461174ddb5e120"


def test_topics_may_share_a_label() -> None:
    dataset = newsgroups(
        topics={"rec.sport.hockey": "sport", "rec.sport.baseball": "sport", "sci.med": "medicine"}, train_rows=10
    )
    assert Counter(row.label for row in dataset.train) == {"sport": 20, "medicine": 10}


def test_an_unknown_topic_names_the_nearest() -> None:
    with pytest.raises(DataError, match=r"no group 'sci.medicine'\. Did you mean 'sci\.med'"):
        newsgroups(topics={"sci.medicine": "medicine", "sci.space": "space"})


def test_more_rows_than_there_are_is_refused() -> None:
    with pytest.raises(DataError, match=r"data\.train_rows=5000, but 'sci.med' has 594 rows in the train file"):
        newsgroups(topics=TOPICS, train_rows=5000)


def test_one_topic_is_no_task() -> None:
    with pytest.raises(DataError, match=r"every row has the label 'space'"):
        newsgroups(topics={"sci.space": "space"})


@pytest.mark.parametrize("keys", [{"train": "a.csv"}, {"validation": "a.csv"}, {"group": "sex"}])
def test_keys_of_files_are_refused(keys: dict[str, str]) -> None:
    with pytest.raises(DataError, match=r"is not used by data=newsgroups"):
        newsgroups(**keys)


def test_test_rows_are_others_than_those_for_validation() -> None:
    config = DataConfig(topics=TOPICS, train_rows=10, validation_rows=20, test_rows=15)
    seen, test = newsgroups(topics=TOPICS, train_rows=10, validation_rows=20).validation, load_test(config)
    assert len(test) == 15 * len(TOPICS)
    assert not {row.text for row in test} & {row.text for row in seen}
    assert set(load_test(replace(config, test_rows=5))) < set(test)
    with pytest.raises(DataError, match="none is left for a test split"):
        load_test(replace(config, validation_rows=0))
    with pytest.raises(DataError, match="There are no test rows"):
        load_test(replace(config, test_rows=0))
