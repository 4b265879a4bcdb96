"""Data modules over small files, and what tests ask of their batches."""

from itertools import islice

import torch

from tests.data.pictures import processor
from upop.data import Flickr8kRetrieval


def module(files, **settings):
    settings = {"batch_size": 4, "eval_batch_size": 4, "num_workers": 0, **settings}
    data = Flickr8kRetrieval(**{**files, **settings})
    data.set_processor(processor())
    return data


def epoch(loader, number, most=99):
    loader.sampler.set_epoch(number)
    return list(islice(iter(loader), most))


def same(left, right):
    return len(left) == len(right) and all(
        a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a) for a, b in zip(left, right, strict=True)
    )
