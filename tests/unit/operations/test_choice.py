"""``auto`` in ``macro_steps``: which nodes boot by kexec, from rows that the recorder has left in a real database."""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kadeploy.caller import Account
from kadeploy.config.cluster import Implementation, Loader
from kadeploy.config.folder import Configuration, load_configuration
from kadeploy.config.site import Site
from kadeploy.environments.environment import Archive, Environment
from kadeploy.errors import OptionError
from kadeploy.events import Began, Finished
from kadeploy.operations import admission, choice, dry_run, forecast, record, sources
from kadeploy.operations.choice import LEAST, SHARE, judged
from kadeploy.operations.recorder import Recorder
from kadeploy.operations.requests import DeployRequest, Described
from kadeploy.operations.work import Resumption, Work
from kadeploy.runner.request import CustomOperation, Options
from kadeploy.state import database, history, nodes, tries
from kadeploy.state.tables import Log
from kadeploy.state.tries import Tries
from kadeploy.workflow import Attempt, Final, Tried, Verdict
from tests.unit import build

GDX = tuple(f"gdx-{number}.site" for number in range(1, 5))
SET, BOOT = "SetDeploymentEnv", "BootNewEnv"
UNTRUSTED, CLASSICAL, HARD = "SetDeploymentEnvUntrusted", "BootNewEnvClassical", "BootNewEnvHardReboot"
SET_KEXEC, BOOT_KEXEC = "SetDeploymentEnvKexec", "BootNewEnvKexec"
STEPS = """\
macro_steps:
  SetDeploymentEnv:
    - {implementation: auto, timeout: 60}
    - {implementation: SetDeploymentEnvUntrusted, retries: 1, timeout: 600}
  BroadcastEnv:
    - {implementation: BroadcastEnvChain}
  BootNewEnv:
    - {implementation: auto, timeout: 90}
    - {implementation: BootNewEnvClassical, timeout: 600}
    - {implementation: BootNewEnvHardReboot, timeout: 600}
"""
ON_SQLITE = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)


@pytest.fixture
def chooses(site_folder: Path, configuration: Configuration, environment: Environment) -> Configuration:
    """A site whose cluster gdx leaves both boots to us, and whose nodes are in the deployment system."""
    file = site_folder / "clusters" / "gdx.yml"
    file.write_text(file.read_text() + STEPS)
    in_deployment_system(configuration.site, GDX)
    return load_configuration(site_folder)


def in_deployment_system(site: Site, names: tuple[str, ...]) -> None:
    database.connect(site)
    nodes.set_state(list(names), "deploy_env", nodes.NO_ENVIRONMENT, "root")


def asked(**changes: object) -> DeployRequest:
    return build.deploy_request(**{"nodes": GDX, "force_steps": None} | changes)


def admitted(configuration: Configuration, **changes: object) -> Work:
    return admission.deploy(asked(**changes), configuration)


def by_kexec(work: Work, macro_step: str = BOOT) -> tuple[str, ...]:
    """The nodes that begin the macro-step by kexec."""
    kexec = choice.KEXEC[macro_step]
    ways = [way.name for way in dict(work.plans["gdx"])[macro_step]]
    assert ways[-1] not in (kexec, "auto"), "the firmware is always behind it"
    return tuple(name for name in work.names if name not in work.passing.get(kexec, ())) if kexec in ways else ()


def told(work: Work, macro_step: str = BOOT) -> list[str]:
    return [note for note in work.notes if note.startswith(f"gdx: {macro_step}: ")]


# --- what the recorder writes of deployments that went so ------------------------------------------------------------

Tries_ = tuple[tuple[str, str, Verdict, float], ...]
OK, KO = Verdict.OK, Verdict.KO
WELL: Tries_ = ((SET, UNTRUSTED, OK, 100), ("BroadcastEnv", "BroadcastEnvChain", OK, 50))
WAYS: Mapping[str, Tries_] = {
    "kexec": (*WELL, (BOOT, BOOT_KEXEC, OK, 20)),
    "slow kexec": (*WELL, (BOOT, BOOT_KEXEC, OK, 900)),
    "again": (*WELL, (BOOT, BOOT_KEXEC, KO, 90), (BOOT, BOOT_KEXEC, OK, 20)),
    "fell back": (*WELL, (BOOT, BOOT_KEXEC, KO, 90), (BOOT, CLASSICAL, OK, 120)),
    "ko": (*WELL, (BOOT, BOOT_KEXEC, KO, 90)),
    "all ko": (*WELL, (BOOT, BOOT_KEXEC, KO, 90), (BOOT, CLASSICAL, KO, 90), (BOOT, HARD, KO, 90)),
    "firmware": (*WELL, (BOOT, CLASSICAL, OK, 120)),
    "fast firmware": (*WELL, (BOOT, CLASSICAL, OK, 10)),
    "image": (WELL[0], ("BroadcastEnv", "BroadcastEnvChain", KO, 5)),
    "set kexec": ((SET, SET_KEXEC, OK, 30), *WELL[1:], (BOOT, CLASSICAL, OK, 120)),
    "set kexec, then image": ((SET, SET_KEXEC, OK, 30), ("BroadcastEnv", "BroadcastEnvChain", KO, 5)),
    "set fell back": ((SET, SET_KEXEC, KO, 60), *WELL, (BOOT, CLASSICAL, OK, 120)),
}
_minutes: Iterator[int] = itertools.count()


def went(
    configuration: Configuration, *ways: str, aborted: bool = False, ago: float | None = None, **more: object
) -> None:
    """A deployment on gdx in which the first nodes went these ways; each is a minute later than the one before."""
    work = admitted(configuration, nodes=GDX[: len(ways)], force_steps=build.DUMMIES, **more)
    recorder = Recorder(work)
    recorder(Began(wid=work.wid, operation="deploy", user="root", groups=work.groups, plans=work.plans))
    recorder(Finished(finals={name: _final(WAYS[way], aborted) for name, way in zip(work.names, ways, strict=True)}))
    recorder.close()
    start = time.time() - (100_000 - 60 * next(_minutes) if ago is None else ago)
    Log.update(start=int(start)).where(Log.wid == work.wid).execute()
    in_deployment_system(configuration.site, GDX)


def _final(ways: Tries_, aborted: bool) -> Final:
    seen: dict[str, int] = {}
    past = []
    for number, (step, name, verdict, seconds) in enumerate(ways, start=1):
        past.append(Tried(Attempt(step, name, seen.get(name, 0), number=number), verdict, seconds))
        seen[name] = seen.get(name, 0) + 1
    last = past[-1].verdict
    if aborted:
        return Final(Verdict.KO, "aborted", tuple(past), aborted=True)
    return Final(last, "no answer" if last is KO else "", tuple(past))


# --- without history: one node tries ---------------------------------------------------------------------------------


def test_as_long_as_nothing_is_known_one_node_tries_and_has_the_firmware_behind_it(chooses: Configuration) -> None:
    work = admitted(chooses)
    assert (by_kexec(work, SET), by_kexec(work)) == (GDX[:1], GDX[:1])
    assert [way.name for way in dict(work.plans["gdx"])[BOOT]] == [BOOT_KEXEC, CLASSICAL, HARD]
    assert dict(work.plans["gdx"])[SET][0] == Implementation(name=SET_KEXEC, timeout=60)
    assert told(work) == [
        "gdx: BootNewEnv: BootNewEnvKexec for gdx-1.site: a try, with the firmware behind it; so far 0 of the 3 tries "
        "that show whether it works",
        "gdx: BootNewEnv: BootNewEnvClassical for gdx-[2-4].site: kexec is tried on gdx-1.site first",
    ]


def test_after_three_tries_that_went_well_all_nodes_boot_by_kexec(chooses: Configuration) -> None:
    for _ in range(LEAST):
        assert by_kexec(admitted(chooses)) == GDX[:1]
        went(chooses, "kexec", "firmware")
    work = admitted(chooses)
    assert by_kexec(work) == GDX
    assert (work.passing, told(work)) == (
        {SET_KEXEC: GDX[1:]},
        [
            "gdx: BootNewEnv: BootNewEnvKexec for gdx-[1-4].site: 3 of 3 tries within 90 days went well, 20 s in place "
            "of 120 s"
        ],
    )


@ON_SQLITE
def test_a_first_try_that_fails_is_the_last_one(chooses: Configuration) -> None:
    went(chooses, "fell back")
    work = admitted(chooses)
    assert by_kexec(work) == ()
    assert [way.name for way in dict(work.plans["gdx"])[BOOT]] == [CLASSICAL, HARD]
    assert told(work)[0].endswith("kexec has not proved itself: 0 of 1 tries within 90 days went well")


# --- the table -------------------------------------------------------------------------------------------------------

ALL, ONE, NONE = GDX, GDX[:1], ()
PROVED = (("kexec", "kexec", "kexec"),)
TABLE: Mapping[str, tuple[tuple[tuple[str, ...], ...], tuple[str, ...]]] = {
    "three nodes in one deployment are three tries": (PROVED, ALL),
    "two tries are too few": ((("kexec",), ("kexec",)), ONE),
    "a try that was repeated went well": ((("again", "again", "again"),), ALL),
    "other ways tell nothing of kexec": ((("firmware",) * 4,) * 2, ONE),
    "nor does an image that was not written": ((("image",) * 3,), ONE),
    "a node whose last try failed boots by the firmware": ((*[("kexec",) * 4] * 4, ("fell back",)), GDX[1:]),
    "until it has gone well there": ((*[("kexec",) * 4] * 4, ("fell back",), ("kexec",)), ALL),
    "more than one in ten": ((("kexec",) * 4, ("fell back",)), NONE),
    "a node that no way has booted": ((("kexec",) * 4, ("all ko",)), NONE),
    "a node that ended there": ((("kexec",) * 4, ("ko",)), NONE),
    "no faster than the firmware": ((("kexec",) * 3, ("fast firmware",)), NONE),
    "slower once, where a node waited for another": ((("kexec",) * 3, ("slow kexec",), ("firmware",)), ALL),
    "faster than the firmware": ((("kexec",) * 3, ("firmware",)), ALL),
}


@ON_SQLITE
@pytest.mark.parametrize("row", TABLE)
def test_what_went_before_decides(chooses: Configuration, row: str) -> None:
    before, expected = TABLE[row]
    for ways in before:
        went(chooses, *ways)
    assert by_kexec(admitted(chooses)) == expected


def test_the_deployment_system_has_a_history_of_its_own(chooses: Configuration) -> None:
    went(chooses, "set kexec", "set kexec", "set kexec, then image")
    work = admitted(chooses)
    assert (by_kexec(work, SET), by_kexec(work)) == (ALL, ONE)
    went(chooses, "set fell back")
    assert by_kexec(admitted(chooses), SET) == NONE


@ON_SQLITE
def test_another_image_and_another_operation_have_a_history_of_their_own(
    chooses: Configuration, environment: Environment
) -> None:
    went(chooses, *PROVED[0])
    assert by_kexec(admitted(chooses)) == ALL
    Log.update(operation="reboot").execute()
    assert by_kexec(admitted(chooses)) == ONE
    Log.update(operation="deploy", md5="0" * 32).execute()
    assert by_kexec(admitted(chooses)) == ONE
    Log.update(md5=environment.image.md5, env="tiny:2").execute()
    assert by_kexec(admitted(chooses)) == ONE


@ON_SQLITE
def test_what_was_aborted_or_is_old_says_nothing(chooses: Configuration) -> None:
    went(chooses, "fell back", aborted=True)
    went(chooses, "fell back", ago=(tries.DAYS + 1) * 86400)
    assert by_kexec(admitted(chooses)) == ONE
    went(chooses, *PROVED[0])
    assert by_kexec(admitted(chooses)) == ALL
    Log.update(start=int(time.time()) - (tries.DAYS + 1) * 86400).execute()
    assert by_kexec(admitted(chooses)) == ONE


@ON_SQLITE
def test_another_deployment_system_is_tried_anew(chooses: Configuration) -> None:
    went(chooses, "set kexec", "set kexec", "set kexec")
    assert by_kexec(admitted(chooses), SET) == ALL
    kernel = Path(chooses.site.boot.http_root) / chooses.clusters["gdx"].loader.kernel
    kernel.parent.mkdir(exist_ok=True)
    kernel.touch()
    assert by_kexec(admitted(chooses), SET) == ONE
    os.utime(kernel, (0, 0))
    assert by_kexec(admitted(chooses), SET) == ALL


@ON_SQLITE
def test_of_a_long_log_the_newest_rows_count(chooses: Configuration, monkeypatch: pytest.MonkeyPatch) -> None:
    went(chooses, "kexec", "kexec", "kexec", ago=3600)
    for _ in range(2):
        went(chooses, "firmware", ago=60)
    monkeypatch.setattr(tries, "MOST", 2)
    assert by_kexec(admitted(chooses)) == ONE


# --- what is out of the question -------------------------------------------------------------------------------------

OPTIONS: Mapping[str, tuple[Options, tuple[str, ...]]] = {
    "--no-kexec": (Options(no_kexec=True), (SET, BOOT)),
    "--reboot-classical-timeout": (Options(reboot_timeout="300"), (SET, BOOT)),
    "-w": (Options(pxe_profile="DEFAULT x\n"), (BOOT,)),
    "the request has a breakpoint or an operation in BootNewEnvClassical": (
        Options(breakpoint="BootNewEnvClassical:wait_reboot"),
        (BOOT,),
    ),
    "or an operation in SetDeploymentEnvUntrusted": (
        Options(
            custom_operations=(
                CustomOperation(
                    implementation=UNTRUSTED, micro_step="wait_reboot", when="post", action="exec", command="true"
                ),
            )
        ),
        (SET,),
    ),
}


@ON_SQLITE
@pytest.mark.parametrize("reason", OPTIONS)
def test_what_the_user_asks_for_comes_first(chooses: Configuration, reason: str) -> None:
    options, without = OPTIONS[reason]
    work = admitted(chooses, options=options)
    for step in (SET, BOOT):
        assert by_kexec(work, step) == (NONE if step in without else ONE)
    for step in without:
        assert reason in told(work, step)[0]


@ON_SQLITE
def test_who_says_how_long_kexec_takes_as_well_has_nothing_against_it(chooses: Configuration) -> None:
    assert by_kexec(admitted(chooses, options=Options(reboot_timeout="300", kexec_timeout="60"))) == ONE


ENVIRONMENTS: Mapping[str, tuple[dict[str, object], tuple[str, ...]]] = {
    "the environment's options say kexec: false": ({"kexec": False}, (SET, BOOT)),
    "the environment names no kernel": ({"kernel": ""}, (BOOT,)),
    "a system of kind xen cannot be started by kexec": ({"environment_kind": "xen", "hypervisor": "/xen"}, (BOOT,)),
}


@ON_SQLITE
@pytest.mark.parametrize("reason", ENVIRONMENTS)
def test_what_kexec_cannot_start_boots_by_the_firmware(
    chooses: Configuration, environment: Environment, reason: str
) -> None:
    changes, without = ENVIRONMENTS[reason]
    other = msgspec.structs.replace(environment, **changes)  # type: ignore[arg-type]
    work = admitted(chooses, environment=Described(environment=other), options=Options(disable_bootloader_install=True))
    for step in (SET, BOOT):
        assert by_kexec(work, step) == (NONE if step in without else ONE)
    assert reason in told(work, without[-1])[0]


@ON_SQLITE
def test_a_pre_install_takes_the_place_of_all_ways_with_the_tries_of_the_first_that_is_named(
    chooses: Configuration, environment: Environment
) -> None:
    other = msgspec.structs.replace(
        environment, preinstall=Archive(file=environment.image.file, kind="tgz", script="go")
    )
    work = admitted(chooses, environment=Described(environment=other))
    assert [(way.name, way.retries) for way in dict(work.plans["gdx"])[SET]] == [(f"{UNTRUSTED}CustomPreInstall", 1)]


@ON_SQLITE
def test_forced_steps_are_the_users(chooses: Configuration) -> None:
    went(chooses, *PROVED[0])
    work = admitted(chooses, force_steps=build.DUMMIES)
    assert (dict(work.plans["gdx"]), work.passing, told(work)) == (build.DUMMIES, {}, [])
    auto = build.DUMMIES | {BOOT: (Implementation(name="auto"), *build.DUMMIES[BOOT])}
    with pytest.raises(OptionError, match="Unknown implementation 'auto'"):
        admitted(chooses, force_steps=auto)


@ON_SQLITE
def test_the_sites_own_rules_come_first(chooses: Configuration) -> None:
    hard = msgspec.structs.replace(chooses, site=msgspec.structs.replace(chooses.site, first_reboot="hard"))
    assert by_kexec(admitted(hard), SET) == NONE
    assert told(admitted(hard), SET)[0].endswith("first_reboot of this site is hard")
    loader = Loader(firmware="uefi", profiles="grub", secure_boot=True)
    gdx = msgspec.structs.replace(chooses.clusters["gdx"], loader=loader)
    secure = msgspec.structs.replace(chooses, clusters=chooses.clusters | {"gdx": gdx})
    assert by_kexec(admitted(secure)) == by_kexec(admitted(secure), SET) == NONE


# --- what nodes run --------------------------------------------------------------------------------------------------


@ON_SQLITE
def test_kexec_into_the_deployment_system_starts_from_itself_alone(chooses: Configuration) -> None:
    """Its host key is pinned: no other system is sent a kernel."""
    went(chooses, "set kexec", "set kexec", "set kexec")
    nodes.set_state([GDX[0]], "deployed", nodes.NO_ENVIRONMENT, "root")
    nodes.set_state([GDX[1]], "aborted", nodes.NO_ENVIRONMENT, "root")
    nodes.NodeState.delete().where(nodes.NodeState.hostname == GDX[2]).execute()
    work = admitted(chooses)
    assert by_kexec(work, SET) == GDX[3:]
    assert [note.partition(f"{UNTRUSTED} for ")[2] for note in told(work, SET)[1:]] == [
        "gdx-1.site: in the state deployed, and kexec starts from deploy_env",
        "gdx-2.site: in the state aborted, and kexec starts from deploy_env",
        "gdx-3.site: nobody knows what they run",
    ]


@ON_SQLITE
def test_where_no_host_key_is_pinned_other_systems_start_it_too(chooses: Configuration) -> None:
    went(chooses, "set kexec", "set kexec", "set kexec")
    nodes.set_state([GDX[0]], "prod_env", nodes.NO_ENVIRONMENT, "root")
    ssh = msgspec.structs.replace(chooses.site.ssh, host_key="")
    unpinned = msgspec.structs.replace(chooses, site=msgspec.structs.replace(chooses.site, ssh=ssh))
    assert by_kexec(admitted(chooses), SET) == GDX[1:]
    assert by_kexec(admitted(unpinned), SET) == GDX


# --- how it is told, and what follows --------------------------------------------------------------------------------


@ON_SQLITE
def test_a_dry_run_says_which_way_for_which_nodes_and_why(chooses: Configuration, root: Account) -> None:
    for _ in range(4):
        went(chooses, "kexec", "kexec", "kexec", "kexec")
    went(chooses, "fell back")
    work = admitted(chooses)
    said = "\n".join(dry_run.lines(work, sources.of(work, root)))
    assert "BootNewEnv: BootNewEnvKexec (1 try, 90 s each), then BootNewEnvClassical (1 try, 600 s each)" in said
    assert "gdx: BootNewEnv: BootNewEnvKexec for gdx-[2-4].site: 16 of 17 tries within 90 days went well" in said
    assert "gdx: BootNewEnv: BootNewEnvClassical for gdx-1.site: the last try by kexec failed there" in said


@ON_SQLITE
def test_kastat3_tells_the_way_that_was_taken_and_the_one_that_was_given_up(chooses: Configuration) -> None:
    went(chooses, "kexec", "fell back", "all ko", "ko")
    found = history.rows(chooses.site, history.Selection(), ("step3", "retry_step3", "given_up"), order=("hostname",))
    assert list(found) == [
        (BOOT_KEXEC, 0, ""),
        (CLASSICAL, 1, BOOT_KEXEC),
        (HARD, 2, f"{BOOT_KEXEC},{CLASSICAL}"),
        (BOOT_KEXEC, 0, ""),
    ]


@ON_SQLITE
def test_what_is_left_is_told_by_the_way_that_each_node_goes(chooses: Configuration) -> None:
    for _ in range(LEAST):
        went(chooses, "kexec", "kexec", "kexec", "kexec")
    for _ in range(LEAST):
        went(chooses, "firmware", "firmware", "firmware", "firmware")
    for _ in range(2):
        went(chooses, "kexec", "kexec", "kexec", "kexec")
    went(chooses, "fell back")
    work = admitted(chooses)
    usual = forecast.usual(work)
    began = Began(
        wid=work.wid, operation="deploy", user="root", groups=work.groups, plans=work.plans, usual=usual,
        passing=work.passing,
    )  # fmt: skip
    found = forecast.of(msgspec.json.decode(msgspec.json.encode(began), type=Began))
    assert found is not None
    attempt = Attempt("BroadcastEnv", "BroadcastEnvChain")
    assert found.left(attempt, GDX[:1], 0) == pytest.approx(170)
    assert found.left(attempt, GDX[1:], 0) == pytest.approx(70)


@ON_SQLITE
def test_another_process_goes_on_with_the_same_choice(chooses: Configuration, tmp_path: Path) -> None:
    work = admitted(chooses)
    work.folder.mkdir(parents=True)
    record.write(work, None, work.names, {})
    again = record.read(work.folder).work(chooses, Resumption(ways={}, begun=0.0, next_number=1))
    assert (again.passing, again.plans) == (work.passing, work.plans)


@ON_SQLITE
def test_a_log_that_cannot_be_read_means_the_firmware(chooses: Configuration) -> None:
    database.DB.execute_sql("ALTER TABLE log RENAME COLUMN given_up TO something_else")
    work = admitted(chooses)
    assert by_kexec(work, SET) == by_kexec(work) == NONE
    assert told(work)[0].endswith("BootNewEnvClassical for gdx-[1-4].site: the log of what went before cannot be read")


# --- the rule, for any history ---------------------------------------------------------------------------------------

COUNTS = st.builds(
    Tries,
    worked=st.integers(0, 30),
    failed=st.integers(0, 5),
    last_worked=st.integers(0, 5),
    last_failed=st.integers(0, 5),
    seconds=st.integers(0, 500),
    other_seconds=st.integers(0, 500),
)


@given(st.dictionaries(st.sampled_from(GDX), COUNTS))
def test_each_node_goes_one_way_and_a_cluster_that_has_not_proved_it_risks_one_node(known: dict[str, Tries]) -> None:
    found = judged(GDX, known)
    kexec, firmware = (sorted(name for names in part.values() for name in names) for part in found)
    assert sorted([*kexec, *firmware]) == list(GDX)
    total = tries.together(known.values())
    if total.worked < LEAST or total.worked < SHARE * total.tried:
        assert len(kexec) <= (0 if total.failed else 1)
    assert not any(known[name].failed_last for name in kexec if name in known and total.tried >= LEAST)
