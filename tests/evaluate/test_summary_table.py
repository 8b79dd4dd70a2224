"""Tables always show the controls, say what was not run, and keep apart what must not be averaged."""

import pytest
from rich.console import Console

from jaxpurify.evaluate.per_target import target_lists, target_markdown, target_table
from jaxpurify.evaluate.summary import blocks, epsilon_text, percent, target_shares
from jaxpurify.evaluate.table import html_table, markdown_table, plain_text, results_table, text_table
from jaxpurify.evaluate.transfer import matrix_markdown, matrix_table, surrogate_of, transfer_matrices
from jaxpurify.records import Summary, make_row, run_id


def row(**changes):
    identity = {"protocol": "cpu-small", "data": "digits", "attack": "narcissus", "defence": "none"}
    identity |= {"victim": "hlb(width=8)", "seed": 0}
    identity |= {name: value for name, value in changes.items() if name in identity}
    rest = {"adaptive": False, "natural_accuracy": 0.97, "poison_success": 0.5, "poison_success_worst": 0.9}
    rest |= {"trigger_success_clean": 0.05, "poisons": 45, "epsilon": 16 / 255, "seconds": 3.0, "labels_changed": False}
    rest |= changes
    if identity["attack"] == "none":
        rest |= {"poison_success": None, "poison_success_worst": None, "trigger_success_clean": None}
        rest |= {"poisons": 0, "epsilon": None, "labels_changed": None}
    config = {**identity, **{name: rest[name] for name in ("adaptive", "poisons", "epsilon", "labels_changed")}}
    return make_row(**{**rest, **identity, "config": config})


@pytest.fixture(scope="module")
def rows():
    found = [row(defence="langevin(steps=9)|jpeg()", seed=s, poison_success=0.1 + 0.1 * s) for s in range(3)]
    found += [row(defence="langevin(steps=9)|jpeg()", adaptive=True, poison_success=0.8)]
    found += [row(seed=s, poison_success=0.9) for s in range(2)]
    found += [row(attack="badnets", defence="jpeg()", epsilon=None, labels_changed=True, poison_success=0.01)]
    return found


def renderings(rows):
    return {"text": text_table(rows, width=160), "markdown": markdown_table(rows), "html": html_table(rows)}


def test_controls_come_first_and_are_listed_even_when_they_were_not_run(rows):
    (block,) = blocks(rows)
    assert [group.attack for group in block.groups] == ["none", "narcissus", "badnets"]
    assert [[(line.defence, line.runs) for line in group.lines] for group in block.groups] == [
        [("none", 0)],
        [("none", 2), ("langevin(steps=9)|jpeg()", 3), ("langevin(steps=9)|jpeg()", 1)],
        [("none", 0), ("jpeg()", 1)],
    ]
    (block,) = blocks([*rows, row(attack="none"), row(attack="none", defence="jpeg()")])
    assert [(line.defence, line.runs) for line in block.groups[0].lines] == [("none", 1), ("jpeg()", 1)]


def test_an_adaptive_attacker_is_a_line_of_its_own(rows):
    (block,) = blocks(rows)
    plain, adaptive = block.groups[1].lines[1:]
    assert (plain.adaptive, plain.success.mean) == (False, pytest.approx(0.2))
    assert (adaptive.adaptive, adaptive.success.mean) == (True, 0.8)


def test_budgets_and_settings_are_not_averaged_together(rows):
    (block,) = blocks([row(), row(seed=1, epsilon=8 / 255), row(seed=2, poisons=90), row(seed=3, labels_changed=True)])
    assert [group.lines[0].runs for group in block.groups[1:]] == [1, 1, 1, 1]
    assert len(blocks([row(), row(protocol="paper"), row(victim="other"), row(data="cifar10")])) == 4


def test_attackers_in_other_circumstances_are_not_averaged_together():
    def of(seed, target_hits=None, **settings):
        found = row(seed=seed)
        config = {**found["config"], **settings}
        return make_row(**{**found, "config": config, "run_id": run_id(config), "target_hits": target_hits})

    recipe = {"recipe": {"epochs": 10}}
    different = [
        of(0), of(0, surrogates=8), of(0, targets=2), of(0, surrogate="hlb_s"), of(0, trigger_scale=1.5),
        of(0, surrogate_defence="jpeg()"), of(0, [True], trigger_scale=2.0), of(0, settings=recipe),
    ]  # fmt: skip
    first, second = blocks(different)
    assert (first.training, second.training) == ("", "10 epochs") and "· 10 epochs" in text_table(different)
    assert [group.circumstances for group in first.groups[1:]] == [
        (), ("8 surrogates",), ("2 targets",), ("made on hlb_s",), ("trigger × 1.5 at test",),
        ("surrogate trained behind jpeg()",),
    ]  # fmt: skip
    assert [group.lines[0].runs for group in first.groups[1:]] == [2, 1, 1, 1, 1, 1]


def test_a_strength_that_was_not_applied_is_not_named():
    found = [row(seed=seed) | {"trigger_scale": scale} for seed, scale in ((0, 1.0), (1, 2.0), (2, None))]
    for each in found[:2]:
        each["config"] = {**each["config"], "trigger_scale": 2.0}
    found[2].pop("trigger_scale")
    (block,) = blocks(found)
    assert [group.circumstances for group in block.groups[1:]] == [(), ("trigger × 2 at test",)]
    assert [group.lines[0].runs for group in block.groups[1:]] == [2, 1]


def test_a_clean_victim_counts_once_whatever_the_trigger():
    rows = [row(attack="none", seed=seed) for seed in (0, 1)]
    again = [
        {**each, "run_id": f"{number}", "config": each["config"] | {"trigger_scale": 2.0}}
        for number, each in enumerate(rows)
    ]
    (block,) = blocks(rows + again)
    assert block.groups[0].lines[0].runs == 2


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"weights": "new"}, "weights "),
        ({"attacker_weights": ["new"]}, "made with "),
        ({"file": "new"}, "made with "),
        ({"settings": {"recipe": {"learning_rate": 0.5}}}, "settings "),
    ],
)
def test_what_no_name_tells_is_not_averaged_together(config, said):
    old = [row(defence="jpeg()", seed=seed, poison_success=0.2, target_hits=[True]) for seed in (0, 0)]
    new = [{**each, "poison_success": 0.8, "config": each["config"] | config} for each in old]
    for number, each in enumerate(old + new):
        each["run_id"] = str(number)
    tables = [block for block in blocks(old + new) if len(block.groups) > 1]
    defended = [line for block in tables for group in block.groups for line in group.lines if line.defence == "jpeg()"]
    assert sorted((line.success.mean, line.runs) for line in defended) == [(0.2, 2), (0.8, 2)]
    assert len(target_lists(old + new)) == 2 and all("settings " in each.title for each in target_lists(old + new))
    for each in old + new:
        each["config"]["surrogate"] = "hlb_s"
    matrices = transfer_matrices(old + new)
    assert len(matrices) == 2 and all("settings " in matrix.title for matrix in matrices)
    for text in renderings(old + new).values():
        assert said in text and said not in renderings(old)["text"]


def test_the_highest_target_class_is_named_beside_the_mean():
    found = [row(seed=seed, poison_success=success) for seed, success in enumerate((0.25, 0.75, 0.5))]
    for target, expected in ((None, 0.75), (3, 0.5)):
        line = blocks([{**each, "target": target} for each in found])[0].groups[1].lines[0]
        assert line.highest == Summary(expected, None, 3)
    several = [{**each, "target": target} for each, target in zip(found, (3, 3, 4), strict=True)]
    assert blocks(several)[0].groups[1].lines[0].highest == Summary(0.5, None, 3)
    assert "75.0" in text_table([{**each, "target": each["seed"]} for each in found])


def test_excess_is_taken_run_by_run_above_the_clean_floor():
    first = row(poison_success=0.5, trigger_success_clean=0.1)
    second = row(poison_success=0.0, trigger_success_clean=0.2, seed=1)
    third = row(poison_success=0.3, trigger_success_clean=None, seed=2)
    line = blocks([first, second, third])[0].groups[1].lines[0]
    assert line.excess.n == 2 and line.excess.mean == pytest.approx(0.1)
    assert percent(line.excess, line.runs, signed=True) == ("+10.0", "± 30.0 (n = 2)")


@pytest.mark.parametrize("form", ["text", "markdown", "html"])
def test_every_rendering_states_what_was_measured(rows, form):
    shown = renderings(rows)[form]
    for word in ("cpu-small", "digits", "hlb(width=8)", "narcissus", "badnets", "undefended", "16/255", "not run"):
        assert word in shown, word
    assert shown.count("undefended") == 3
    assert "20.0" in shown and "90.0" in shown  # langevin and undefended success
    assert "5.8" in shown  # standard error of 0.1, 0.2, 0.3
    assert "changed" in shown and "unchanged" in shown and "yes" in shown
    assert "standard error" in shown


def test_a_purifier_that_fails_is_shown_as_it_is():
    worse = [row(), row(defence="jpeg()", poison_success=0.01, trigger_success_clean=0.05)]
    assert "-4.0" in text_table(worse) and "-4.0" in markdown_table(worse) and "−4.0" in html_table(worse)


def test_text_keeps_all_columns_on_a_narrow_terminal(rows):
    assert "Highest" in text_table(rows, width=100) and "Highest" not in text_table(rows, width=99)
    shown = text_table(rows, width=80)
    assert max(map(len, shown.splitlines())) <= 80
    assert "Excess" in shown and "+85.0±0.0" in shown


def test_results_table_does_not_read_markup_in_names():
    source = "tfds:cifar10/train[:10000]"
    shown = text_table([row(data=source, defence="[red]odd[/red]")])
    assert source in shown and "[red]odd[/red]" in shown
    several = [row(data=source), row(data="[b]x[/b]")]
    console = Console(width=120)
    with console.capture() as capture:
        console.print(results_table(several))
    assert source in capture.get() and "[b]x[/b]" in capture.get()


def test_markdown_names_the_circumstances_of_an_attack():
    plain, behind = row(), row(seed=1)
    behind = make_row(**{**behind, "config": {**behind["config"], "surrogate_defence": "jpeg", "surrogates": 4}})
    attacks = [line.split(" | ")[0] for line in markdown_table([plain, behind]).splitlines() if "narcissus" in line]
    assert attacks == ["| `narcissus`", "| `narcissus`, surrogate trained behind jpeg, 4 surrogates"]


def test_fine_tuned_victims_have_epochs_of_their_own():
    tuned = row(victim="hlb(width=8)-fine-tune")
    settings = {"settings": {"recipe": {"epochs": 200}}, "fine_tuning": {"epochs": 60}}
    (block,) = blocks([{**tuned, "config": {**tuned["config"], **settings}}])
    assert block.training == "60 epochs"


def test_markdown_is_a_table_whatever_the_names_hold():
    shown = markdown_table([row(defence="a|b`c\nd"), row()])
    body = [line for line in shown.splitlines() if line.startswith("|")]
    assert len(body) == 5
    assert {line.replace("\\|", "").count("|") for line in body} == {14}


def test_html_escapes_names():
    shown = html_table([row(defence="<script>alert(1)</script>", victim="<u>v</u>", attack='a"<i>', data="&d")])
    assert "<script" not in shown and "<u>" not in shown and "<i>" not in shown
    assert "&lt;script&gt;" in shown and "&amp;d" in shown


def test_rows_are_needed():
    with pytest.raises(ValueError, match="no rows to tabulate"):
        blocks([])
    with pytest.raises(ValueError, match="lacks protocol, data, attack, defence, victim, seed"):
        text_table([{"run_id": "x", "work": "bench"}])


@pytest.mark.parametrize(
    ("epsilon", "text"), [(None, "–"), (8 / 255, "8/255"), (0.0313725, "8/255"), (0.1, "0.1"), (1.0, "255/255")]
)
def test_epsilon_is_written_as_papers_write_it(epsilon, text):
    assert epsilon_text(epsilon) == text


def test_percent():
    assert percent(Summary(0.12345, 0.004, 3), 3) == ("12.3", "± 0.4")
    assert percent(Summary(-1e-5, None, 1), 1, signed=True) == ("+0.0", "")
    assert percent(Summary(None, None, 0), 3) == ("–", "")


def test_hits_of_target_images_have_wilsons_interval():
    targeted = [row(attack="bullseye", seed=seed, poison_success=float(seed < 7)) for seed in range(10)]
    for each in targeted:
        each["target_hits"] = [each["seed"] < 7]
    for shown in renderings(targeted).values():
        assert "[40, 89]" in shown
    # Three victims for each of the ten targets: still ten targets.
    thrice = [{**each, "run_id": f"{each['run_id']}{number}"} for each in targeted for number in range(3)]
    assert "[40, 89]" in text_table(thrice)
    thrice[0] |= {"target_hits": [False]}
    assert target_shares(thrice)[0, 0] == pytest.approx(2 / 3)
    assert target_lists(targeted) == []  # one victim of a poison says nothing of its target
    longer = {**thrice[1], "config": {**thrice[1]["config"], "settings": {"recipe": {"epochs": 9}}}}
    assert target_lists([thrice[0], longer]) == []  # trained in another way
    (found,) = target_lists(thrice)
    assert [(each.seed, each.hits, each.victims) for each in found.targets][::7] == [(0, 2, 3), (7, 0, 3)]
    assert "| 0 | 0 | – | 2 of 3 | 67 [21, 94] |" in target_markdown(found)
    assert "0 [0, 56]" in plain_text(target_table(found)) and "bullseye; undefended" in found.title
    targeted[0]["target_hits"] = None  # some row does not say: the plain error, then
    assert "[40, 89]" not in text_table(targeted) and "15.3" in text_table(targeted)


def test_victims_of_one_stored_poison_are_no_independent_targets():
    victims = [row(attack="stored(path='p.npz')", seed=seed, target_hits=[True]) for seed in range(10)]
    victims = [{**each, "config": {**each["config"], "file": "0a1b"}} for each in victims]
    assert target_shares(victims) == {("0a1b", 0): 1.0} and "[21, 100]" in text_table(victims)
    (found,) = target_lists(victims)
    assert [(each.seed, each.place, each.hits, each.victims) for each in found.targets] == [(None, 0, 10, 10)]
    assert "| – | 0 | – | 10 of 10 | 100 [72, 100] |" in target_markdown(found)


def test_the_transfer_matrix_of_surrogates_and_victims():
    def cell(victim, surrogate, success, seed):
        found = row(victim=victim, poison_success=success, seed=seed)
        config = {**found["config"], **({} if victim.startswith(surrogate) else {"surrogate": surrogate})}
        return make_row(**{**found, "config": config, "run_id": run_id(config)})

    members = [cell("a-linear", "a", 1.0, 0), cell("a-linear", "a", 0.5, 1), cell("b-linear", "a", 0.25, 0)]
    members.append(row(attack="none", victim="b-linear"))
    assert [surrogate_of(each) for each in members] == ["a", "a", "a", "b"]
    robust = {**members[2], "config": {**members[2]["config"], "surrogate_training": "adversarial"}}
    assert surrogate_of(robust) == "a-adversarial"
    (matrix,) = transfer_matrices(members)
    assert (matrix.surrogates, matrix.victims) == (("a",), ("a-linear", "b-linear"))
    assert matrix.cells["a", "a-linear"].success == Summary(0.75, 0.25, 2)
    assert matrix.cells["a", "b-linear"].success == Summary(0.25, None, 1)
    assert "| a | 75.0 ± 25.0, n = 2 | 25.0, n = 1 |" in matrix_markdown(matrix)
    shown = plain_text(matrix_table(matrix))
    assert "75.0 ± 25.0, n = 2" in shown and "b-linear" in shown
    assert transfer_matrices(members[:2]) == []  # the attacker's own network everywhere
    missing = [*members, cell("a-linear", "c", 0.0, 0)]
    assert "not run" in matrix_markdown(transfer_matrices(missing)[0])
    hits = [{**each, "target_hits": [each["poison_success"] > 0.4]} for each in members[:3]]
    assert "[34, 100], n = 2" in matrix_markdown(transfer_matrices(hits)[0])
    several = [*members, make_row(**{**members[2], "config": {**members[2]["config"], "surrogates": 3}, "run_id": "x"})]
    titles = [each.title for each in transfer_matrices(several)]
    assert len(titles) == 2 and "3 surrogates" in titles[1]
