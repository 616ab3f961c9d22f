"""The configuration: what it accepts, where it comes from, and that it keeps secrets."""

from __future__ import annotations

import os
import re
import traceback
from pathlib import Path

import pytest

from fix_config import LINK, SECRET, loaded, refused
from pglockstep.config import places
from pglockstep.config.docs import example, render_docs
from pglockstep.config.sections import (
    AlertsConfig,
    BackupConfig,
    Config,
    GuardConfig,
    JournalConfig,
    KeepConfig,
    LinkConfig,
    TableGuardConfig,
    WebConfig,
)
from pglockstep.config.unbuilt import not_built_yet, refuse_unbuilt
from pglockstep.config.values import TablePattern
from pglockstep.errors import EXIT_CONFIG, ConfigError, NotBuiltYet
from pglockstep.units import ByteSize, Duration

DOCS = Path(__file__).parent.parent / "docs" / "configuration.md"


# --- what is accepted -------------------------------------------------------------------------------------


def test_two_connection_strings_are_enough(tmp_path: Path) -> None:
    """A link with nothing but its ends has every default that the contract promises."""
    whole = loaded(tmp_path, LINK)
    assert whole.links == {
        "main": LinkConfig(
            name="main",
            source="host=a",
            target="host=b",
            mode="stream",
            interval=Duration(30),
            include=(),
            exclude=(),
            jobs=2,
            without_key="full",
            connect_timeout=Duration(10),
            lock_timeout=Duration(5),
            silence_timeout=Duration(30),
            guard=GuardConfig(
                max_delete_fraction=0.3,
                max_delete_rows=100000,
                max_update_fraction=0.5,
                min_table_rows=20,
                window=Duration(60),
                truncate="hold",
                drop="hold",
                keep_deleted=Duration(3600),
                on_source_wipe="hold",
                on_target_wipe="restore",
                protect_target="watch",
                floors={},
                tables={},
            ),
            journal=JournalConfig(ByteSize(1 << 30), Duration(86400), ByteSize(64 << 20)),
        )
    }
    assert (whole.web, whole.alerts, whole.backup) == (None, None, None)
    assert whole.path == tmp_path / "pglockstep.toml"


def test_the_example_in_the_docs_is_valid_and_shows_the_defaults(tmp_path: Path) -> None:
    """The documented file loads as it stands, and but for its examples it changes nothing."""
    key_file = tmp_path / "backup.key"
    key_file.write_text(f"{SECRET}\n")
    text = example().replace("/etc/pglockstep/backup.key", str(key_file))
    whole = loaded(tmp_path, text, ALERT_URL="json://alerts", PGLOCKSTEP_WEB_TOKEN="t")
    assert whole == Config(
        state_dir=Path("/var/lib/pglockstep"),
        links={
            "main": LinkConfig(
                name="main",
                source="postgresql://app@localhost/app",
                target="postgresql://sync@db.example/app",
                guard=GuardConfig(
                    floors={("public", "User"): 5},
                    tables={TablePattern("public.jobs"): TableGuardConfig(judge=False)},
                ),
            )
        },
        web=WebConfig(token="t"),
        alerts=AlertsConfig(urls=("json://alerts",)),
        backup=BackupConfig(
            store="file:///var/lib/pglockstep/backups", encrypt_key=SECRET, keep=KeepConfig()
        ),
        path=whole.path,
    )


def test_values_other_than_the_defaults_arrive(tmp_path: Path) -> None:
    """Every kind of value is read: choices, durations, patterns, overrides for one table, inline tables."""
    whole = loaded(
        tmp_path,
        """
        [links."eu.west-1"]
        source = "service=here"
        target = "postgresql://u@[::1]:5433/d?sslmode=require"
        interval = "1.5h"
        include = ["public.*", 'sales."Order.*"']
        jobs = 64
        guard.keep_deleted = "0"
        guard.max_delete_fraction = 1
        journal = { keep_size = "0", keep_age = "2h", segment_size = "1MB" }
        [links."eu.west-1".guard.tables]
        'app."Big.Table"' = { max_delete_rows = 0, window = "2d" }
        'app.events_*' = { drop = "allow" }
        [backup]
        keep = { last = 1 }
        """,
    )
    link = whole.links["eu.west-1"]
    assert (link.name, link.interval, link.jobs) == ("eu.west-1", Duration(5400), 64)
    assert [pattern.matches("sales", "Order.*") for pattern in link.include] == [False, True]
    assert (link.guard.keep_deleted, link.guard.max_delete_fraction) == (Duration(0), 1.0)
    assert link.guard.tables == {
        TablePattern('app."Big.Table"'): TableGuardConfig(max_delete_rows=0, window=Duration(172800)),
        TablePattern("app.events_*"): TableGuardConfig(drop="allow"),
    }
    assert link.journal == JournalConfig(ByteSize(0), Duration(7200), ByteSize(1 << 20))
    assert whole.backup == BackupConfig(keep=KeepConfig(last=1))


def test_connection_strings_are_handed_on_untouched(tmp_path: Path) -> None:
    """Nothing in `source` and `target` is expanded, trimmed or rewritten."""
    source, target = " host=a  password='${NAME} ${file:/nowhere}' ", "postgresql://u:%24%7BNAME%7D@h/d"
    link = loaded(tmp_path, f'[links.main]\nsource = "{source}"\ntarget = "{target}"\n', NAME="x").links[
        "main"
    ]
    assert (link.source, link.target) == (source, target)


@pytest.mark.parametrize(
    ("written", "expected"),
    [("/srv/state", "/srv/state"), ("state", "{dir}/state"), ("~/state", "{dir}/state")],
)
def test_state_dir_does_not_depend_on_the_working_directory(
    tmp_path: Path, written: str, expected: str
) -> None:
    """A relative state directory starts at the file's directory, and ~ is the home of the environment."""
    assert loaded(tmp_path, f'state_dir = "{written}"\n{LINK}').state_dir == Path(
        expected.format(dir=tmp_path)
    )


# --- secrets kept elsewhere -------------------------------------------------------------------------------


def test_references_are_expanded_where_they_are_promised(tmp_path: Path) -> None:
    """`${NAME}` and `${file:/path}` stand for their values, also inside of a text and twice."""
    (tmp_path / "key").write_text("line one\nline two\r\n")
    whole = loaded(
        tmp_path,
        f"""{LINK}
        [web]
        token = "${{T}}"
        [alerts]
        urls = ["slack://${{T}}/${{_U2}}", "json://plain"]
        heartbeat_url = "${{T}}${{T}}"
        [backup]
        store = "s3://${{T}}"
        encrypt_key = "${{file:{tmp_path}/key}}"
        schedule = ["${{T}}"]
        """,
        T="t",
        _U2="${T}",
    )
    assert whole.web == WebConfig(token="t")
    assert whole.alerts == AlertsConfig(urls=("slack://t/${T}", "json://plain"), heartbeat_url="tt")
    assert whole.backup == BackupConfig(store="s3://t", encrypt_key="line one\nline two", schedule=("${T}",))


@pytest.mark.parametrize(
    ("reference", "reason"),
    [
        ("NOWHERE", "the environment has no NOWHERE"),
        ("EMPTY", "${EMPTY} is empty"),
        ("file:/nowhere/at all", "cannot read /nowhere/at all: No such file or directory"),
        ("file:/", "cannot read /: Is a directory"),
        ("file:relative", "names nothing"),
        ("A B", "names nothing"),
        ("", "names nothing"),
    ],
)
def test_a_reference_that_leads_nowhere_is_an_error(tmp_path: Path, reference: str, reason: str) -> None:
    """An undefined or empty variable, or a file that cannot be read, stops the start."""
    message, hint = refused(tmp_path, f"{LINK}[backup]\nencrypt_key = '{SECRET}${{{reference}}}'", EMPTY="")
    assert message.startswith("5: encrypt_key in [backup]: ")
    assert reason in message
    assert hint


def test_nothing_secret_is_in_a_repr(tmp_path: Path) -> None:
    """A configuration that ends up in a log or a traceback shows no connection string, URL, key or token."""
    whole = loaded(
        tmp_path,
        f"""
        [links.main]
        source = "password={SECRET}"
        target = "postgresql://u:{SECRET}@h/d"
        jobs = 7
        [web]
        token = "{SECRET}"
        [alerts]
        urls = ["slack://{SECRET}"]
        heartbeat_url = "https://{SECRET}"
        [backup]
        store = "s3://{SECRET}"
        encrypt_key = "{SECRET}"
        """,
    )
    assert SECRET not in f"{whole!r} {whole} {whole.__rich_repr__()}"
    assert "name='main'" in repr(whole)
    assert "jobs=7" in repr(whole)


# --- the file ---------------------------------------------------------------------------------------------


def test_a_file_that_cannot_be_read_is_an_error(tmp_path: Path) -> None:
    """A missing file, a directory and a broken encoding are told apart."""
    with pytest.raises(ConfigError, match=r"cannot read .*/none\.toml: No such file or directory"):
        places.load(tmp_path / "none.toml", {})
    with pytest.raises(ConfigError, match="Is a directory"):
        places.load(tmp_path, {})
    latin = tmp_path / "latin.toml"
    latin.write_bytes(LINK.encode() + "# gr\u00fcn".encode("latin-1"))
    with pytest.raises(ConfigError, match=re.escape(f"{latin}:4: this is not UTF-8")):
        places.load(latin, {})


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_without_permission_is_an_error(tmp_path: Path) -> None:
    """An unreadable file is found and then told, also when its whole directory is closed."""
    path = tmp_path / "closed" / "pglockstep.toml"
    path.parent.mkdir()
    path.write_text(LINK)
    for closed, mode in ((path, 0o644), (path.parent, 0o755)):
        closed.chmod(0)
        assert places.find({}, path) == path
        with pytest.raises(ConfigError, match="Permission denied"):
            places.load(path, {})
        closed.chmod(mode)


def test_the_file_is_found_in_the_promised_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The named file, else the environment's, else the working directory's, else the system's."""
    monkeypatch.chdir(tmp_path)
    system, env, named = tmp_path / "etc.toml", tmp_path / "env.toml", tmp_path / "named.toml"
    monkeypatch.setattr(places, "SYSTEM_FILE", system)
    assert places.find({}, None) is None
    for path, environ, explicit, found in [
        (system, {}, None, system),
        (Path("pglockstep.toml"), {"PGLOCKSTEP_CONFIG": ""}, None, Path("pglockstep.toml")),
        (env, {"PGLOCKSTEP_CONFIG": str(env)}, None, env),
        (named, {"PGLOCKSTEP_CONFIG": str(env)}, named, named),
    ]:
        path.touch()
        assert places.find(environ, explicit) == found


def test_a_named_file_has_to_be_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that was asked for by name is never replaced by another one."""
    monkeypatch.chdir(tmp_path)
    Path("pglockstep.toml").touch()
    for environ, explicit in [({}, Path("gone.toml")), ({"PGLOCKSTEP_CONFIG": "gone.toml"}, None)]:
        with pytest.raises(ConfigError, match=r"there is no file gone\.toml"):
            places.find(environ, explicit)


@pytest.mark.parametrize(
    ("there", "environ", "expected"),
    [
        ("lib/ours", {}, "lib/ours"),
        ("lib", {}, "lib/ours"),
        ("", {"XDG_STATE_HOME": "{dir}/xdg"}, "xdg/pglockstep"),
        ("", {"XDG_STATE_HOME": "relative"}, "home/.local/state/pglockstep"),
        ("", {}, "home/.local/state/pglockstep"),
    ],
)
def test_the_default_state_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, there: str, environ: dict[str, str], expected: str
) -> None:
    """The system's place if it is there or can be made, else the user's own; looking creates nothing."""
    (tmp_path / there).mkdir(parents=True, exist_ok=True)
    monkeypatch.setattr(places, "SYSTEM_STATE_DIR", tmp_path / "lib" / "ours")
    before = sorted(tmp_path.rglob("*"))
    environ = {name: value.format(dir=tmp_path) for name, value in environ.items()}
    assert places.default_state_dir({"HOME": str(tmp_path / "home"), **environ}) == tmp_path / expected
    assert sorted(tmp_path.rglob("*")) == before


def test_a_place_that_is_not_writable_is_not_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the system's place exists but refuses us, or is no directory, the user's own is used."""
    place = tmp_path / "ours"
    monkeypatch.setattr(places, "SYSTEM_STATE_DIR", place)
    place.touch()
    assert places.default_state_dir({"HOME": "/h"}) == Path("/h/.local/state/pglockstep")
    place.unlink()
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert places.default_state_dir({"HOME": "/h"}) == Path("/h/.local/state/pglockstep")


def test_two_ends_without_a_file(tmp_path: Path) -> None:
    """Two connection strings make one link called `default`, with every default."""
    made = places.from_ends("host=a", "service=b", {}, tmp_path)
    assert made == Config(
        state_dir=tmp_path, links={"default": LinkConfig(name="default", source="host=a", target="service=b")}
    )
    assert places.from_ends("host=a", "host=b", {"HOME": "/h"}, None).state_dir.is_absolute()


@pytest.mark.parametrize("broken", ["", f"x {SECRET}", f"sslpassword={SECRET}", f"host=\udcff{SECRET}"])
def test_two_wrong_ends_without_a_file(tmp_path: Path, broken: str) -> None:
    """A wrong connection string from the command line names its side, and not its text."""
    for source, target, side in [(broken, "host=b", "source"), ("host=a", broken, "target")]:
        with pytest.raises(ConfigError, match=f"the {side} of link default: ") as caught:
            places.from_ends(source, target, {}, tmp_path)
        assert SECRET not in "".join(traceback.format_exception(caught.value)) + caught.value.hint


# --- what this version cannot do --------------------------------------------------------------------------


def test_configured_parts_without_effect_are_listed(tmp_path: Path) -> None:
    """What is written and not built yet is named, even if it repeats the defaults; what is absent is not."""
    assert not_built_yet(loaded(tmp_path, LINK)) == []
    written = LINK.replace("main", '"a.b"') + 'guard.drop = "hold"\n[web]\n[alerts]\n[backup]\n'
    assert not_built_yet(loaded(tmp_path, LINK + written)) == [
        "[web]",
        "[alerts]",
        "[backup]",
    ]


@pytest.mark.parametrize("line", ['mode = "two-way"', 'without_key = "poll"'])
def test_a_promised_mode_that_is_not_built_is_refused(tmp_path: Path, line: str) -> None:
    """Such a file loads, as it is right; the link is refused with exit code 3 and what to write instead."""
    link = loaded(tmp_path, LINK + line).links["main"]
    with pytest.raises(NotBuiltYet, match=f"link main asks for {line}") as caught:
        refuse_unbuilt(link)
    assert caught.value.exit_code == EXIT_CONFIG
    assert line.split(maxsplit=1)[0] in caught.value.hint


@pytest.mark.parametrize("line", ["", 'mode = "stream"', 'mode = "poll"', 'without_key = "refuse"'])
def test_what_is_built_is_not_refused(tmp_path: Path, line: str) -> None:
    """The modes of this version pass."""
    refuse_unbuilt(loaded(tmp_path, LINK + line).links["main"])


# --- the docs ---------------------------------------------------------------------------------------------


def test_the_docs_are_up_to_date() -> None:
    """`docs/configuration.md` is what the code renders; `python -m pglockstep.config.docs` writes it anew."""
    assert DOCS.read_text(encoding="utf-8") == render_docs()


def test_every_key_is_documented() -> None:
    """Each key of each table has a line in the docs with a meaning and a default."""
    rows = re.findall(r"^\| `(\w+)` \| .+ \| .+ \| .+ \|$", DOCS.read_text(encoding="utf-8"), re.MULTILINE)
    structural = {"name", "links", "journal", "guard", "tables", "web", "alerts", "backup", "path"}
    sections = [Config, LinkConfig, JournalConfig, GuardConfig, TableGuardConfig]
    for section in [*sections, WebConfig, AlertsConfig, BackupConfig, KeepConfig]:
        assert set(section.__struct_fields__) - structural <= set(rows), section.__name__
