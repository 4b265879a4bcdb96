import torch.distributed as dist
import torch.multiprocessing as mp

from upop.metrics import gather_by_index


def test_one_process_gets_its_own_in_order():
    found = {5: "c", 0: "a", 2: "b"}
    assert list(gather_by_index(found).items()) == [(0, "a"), (2, "b"), (5, "c")]
    assert list(found) == [5, 0, 2]
    assert gather_by_index({}) == {}


CASES = {
    "uneven": (({3: "a cat", 1: "é"}, {0: "", 2: "a dog"}), [(0, ""), (1, "é"), (2, "a dog"), (3, "a cat")]),
    "one has none": (({}, {1: ("yes", 0.5), 0: ("no", 1.0)}), [(0, ("no", 1.0)), (1, ("yes", 0.5))]),
    "a repeated row that agrees": (({0: True, 1: False}, {1: False, 2: True}), [(0, True), (1, False), (2, True)]),
    "contradiction": (
        ({4: "yes", 0: "no"}, {4: "no"}),
        "item 4 came out as 'yes' in one process and as 'no' in another; give each item to one process only",
    ),
}


def process(rank, address, results):
    dist.init_process_group("gloo", init_method=address, rank=rank, world_size=2)
    for name, (parts, _) in CASES.items():
        try:
            results[rank, name] = list(gather_by_index(parts[rank]).items())
        except ValueError as error:
            results[rank, name] = str(error)
    dist.destroy_process_group()


def test_two_processes_both_get_everything(tmp_path):
    with mp.Manager() as manager:
        results = manager.dict()
        mp.spawn(process, args=(f"file://{tmp_path}/rendezvous", results), nprocs=2)
        assert dict(results) == {(rank, name): expected for rank in (0, 1) for name, (_, expected) in CASES.items()}
