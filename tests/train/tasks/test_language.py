from types import SimpleNamespace

import pytest

from mixtura.errors import UserError
from mixtura.models.gpt import GPTConfig
from mixtura.train.data.config import DataConfig
from mixtura.train.tasks.language import LanguageConfig, LanguageTask, language_config
from tests.train.tiny import write_corpus


def test_a_model_takes_its_sizes_from_the_text(tmp_path):
    data = DataConfig(path=str(write_corpus(tmp_path)), cache=str(tmp_path / "cache"), seq_len=16, vocab_size=5000)
    task = LanguageConfig(data=data).prepare()
    assert task.config.model.context == 16
    assert 257 < task.config.model.vocab_size == task.corpus.tokenizer.vocab_size < 5000


def test_sizes_that_belong_to_the_data_are_refused():
    with pytest.raises(UserError, match=r"no --model.vocab-size, got 99; set --data.vocab-size"):
        LanguageConfig(model=GPTConfig(vocab_size=99)).check()
    with pytest.raises(UserError, match=r"no --model.context, got 7; set --data.seq-len"):
        LanguageConfig(model=GPTConfig(context=7)).check()


def test_no_domain_is_named_like_the_mean():
    with pytest.raises(UserError, match="any name but 'mean'"):
        LanguageTask.of(LanguageConfig(), SimpleNamespace(domains=("a", "mean")))


def test_a_run_of_another_kind_is_refused():
    with pytest.raises(UserError, match="a run of a language model, got 'runs/x', whose task is juggling"):
        language_config(SimpleNamespace(task="juggling"), run="runs/x")
