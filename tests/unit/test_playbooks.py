"""The playbooks about people, as an operator runs them: what they refuse, and what they do to a house in memory.

With a real gateway and a real sign-in they run in `make test-cluster`.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.unit.fake_api import FakeApi
from tests.unit.fake_cluster import FakeCluster
from tests.unit.fake_gateway import FakeGateway

ROOT = Path(__file__).resolve().parents[2]
PLAYBOOKS = ("add_user", "remove_user", "rename_user", "list_users", "sign_out", "rotate_token", "lockdown")
ANN = "ann@example.org"


def ansible(*arguments: str) -> tuple[int, str]:
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("ANSIBLE_", "MOLECULE_", "K8S_", "KUBECONFIG"))}
    command = [str(Path(sys.executable).parent / "ansible-playbook"), "-i", str(ROOT / "inventories" / "trial"), *arguments]
    done = subprocess.run(command, cwd=ROOT, env={**environment, "ANSIBLE_NOCOLOR": "1"}, capture_output=True, text=True, check=False,
                          timeout=120)
    return done.returncode, " ".join((done.stdout + done.stderr).split())


def play(name: str, kubeconfig: Path, /, **variables: Any) -> str:
    """Run a playbook that is to fail; what it said."""
    code, said = ansible(f"playbooks/{name}.yml", "-e", json.dumps({"k3s_kubeconfig": str(kubeconfig), **variables}))
    assert code != 0, said
    assert "Traceback" not in said, said
    return said


@pytest.fixture(scope="module")
def nobody(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A kubeconfig of a cluster that is switched off."""
    path = tmp_path_factory.mktemp("cluster") / "kubeconfig"
    document = {
        "current-context": "c",
        "contexts": [{"name": "c", "context": {"cluster": "c", "user": "c"}}],
        "clusters": [{"name": "c", "cluster": {"server": "https://127.0.0.1:1"}}],
        "users": [{"name": "c", "user": {"token": "t"}}],
    }
    path.write_text(yaml.safe_dump(document))
    return path


def test_ansible_understands_them() -> None:
    names = [f"playbooks/{name}.yml" for name in PLAYBOOKS]
    code, said = ansible("--syntax-check", *names, "add_user.yml", "site.yml", "playbooks/render.yml")
    assert code == 0, said


@pytest.mark.parametrize("name", PLAYBOOKS)
def test_each_is_one_play_that_gathers_nothing_and_asks_nothing(name: str) -> None:
    [only] = yaml.safe_load((ROOT / "playbooks" / f"{name}.yml").read_text())
    assert (only["hosts"], only["connection"], only["gather_facts"]) == ("localhost", "local", False)
    assert "vars_prompt" not in only and "pause" not in str(only["tasks"])


@pytest.mark.parametrize(
    ("name", "variables"),
    [
        ("add_user", {"email": ANN, "alias": "Ann", "daily_limit_usd": 2.5}),
        ("remove_user", {"email": ANN, "tokens": "ann-laptop"}),
        ("rename_user", {"from": ANN, "to": "ann@example.net"}),
        ("list_users", {}),
        ("sign_out", {"email": ANN}),
        ("rotate_token", {"name": "proxy"}),
        ("lockdown", {}),
    ],
)
def test_a_cluster_that_does_not_answer_is_told_in_a_sentence(nobody: Path, name: str, variables: dict[str, Any]) -> None:
    assert "No cluster answers at 127.0.0.1:1 (Connection refused): is the server on" in play(name, nobody, **variables)


@pytest.mark.parametrize(
    ("name", "variables", "message"),
    [
        ("add_user", {"email": "ann"}, "'ann': an address has exactly one @"),
        ("add_user", {"email": "*@example.org"}, "there are no wildcards; name each person"),
        ("add_user", {}, "No address given; say who, for example -e email=ann@example.org"),
        ("add_user", {"email": ANN, "daily_limit_usd": "two"}, "'two' is not a sum of dollars"),
        ("remove_user", {}, "No address given; say who"),
        ("rename_user", {"from": ANN}, "takes one address and the new one"),
        ("sign_out", {"email": "ann@"}, "both sides of the @ are needed"),
        ("rotate_token", {}, "'' is no name for a token"),
        ("rotate_token", {"name": "no.dots"}, "'no.dots' is no name for a token"),
    ],
)
def test_what_cannot_be_meant_is_refused_before_a_cluster_is_asked(
    nobody: Path, name: str, variables: dict[str, Any], message: str
) -> None:
    assert message in play(name, nobody, **variables)


# --- on a house in memory


class House:
    """A gateway and a sign-in behind an API server, and how to run a playbook on them."""

    def __init__(self, directory: Path) -> None:
        self.gateway = FakeGateway(FakeCluster())
        self.gateway.put_list("# family\nben@example.org\n")
        self.gateway.put_tokens(proxy="p" * 43, operator="o" * 43, kitchen="k" * 43)
        self.api = FakeApi(self.gateway, directory)

    def play(self, playbook: str, *options: str, **variables: Any) -> tuple[str, int]:
        """What the playbook said, and how many tasks changed something."""
        given = json.dumps({"k3s_kubeconfig": str(self.api.kubeconfig), **variables})
        code, said = ansible(f"playbooks/{playbook}.yml", "-e", given, *options)
        assert code == 0, said
        changed = re.search(r"changed=([0-9]+)", said)
        assert changed
        return said, int(changed[1])

    def data(self, kind: str, namespace: str, name: str) -> dict[str, str]:
        return dict(self.gateway.cluster.objects[(kind, namespace, name)]["data"])

    @property
    def people(self) -> str:
        return self.data("ConfigMap", "public-ingress", "oauth2-proxy-emails")["restricted_user_access"]

    @property
    def tokens(self) -> dict[str, str]:
        return self.data("Secret", "hearth", "gateway-tokens")


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    made = House(tmp_path)
    yield made
    made.api.shutdown()
    made.api.server_close()


def test_somebody_comes_changes_their_address_and_goes(house: House) -> None:
    said, changed = house.play("add_user", "--check", email=ANN)
    assert changed == 1 and "Only checked, nothing was changed." in said and house.people == "# family\nben@example.org\n"
    said, changed = house.play("add_user", email="Ann@example.org", alias="Ann", daily_limit_usd="2.50")
    assert (changed, house.people) == (1, f"# family\nben@example.org\n{ANN}\n") and f"{ANN} may sign in now." in said
    said, changed = house.play("add_user", email=[ANN], alias="Ann", daily_limit_usd=2.5)
    assert changed == 0 and f"{ANN} could sign in already." in said
    said, changed = house.play("list_users")
    assert changed == 0 and f"{ANN}: may sign in; called Ann; money_per_month_usd 20, money_per_day_usd 2.5" in said
    said, changed = house.play("rename_user", **{"from": ANN, "to": "ann@example.net", "oauth2_proxy_emails": ["Ann@example.org"]})
    assert changed == 1 and "ann@example.net may sign in now, ann@example.org no longer." in said
    assert f"The inventory has {ANN} in oauth2_proxy_emails: write the new address there" in said
    said, changed = house.play("remove_user", email="ann@example.net", tokens="kitchen,kichen", oauth2_proxy_emails=["Ann@example.net"])
    assert changed == 2 and "What they saved is kept" in said and "The inventory has ann@example.net in oauth2_proxy_emails" in said
    assert "The token kitchen is refused." in said and "There is no token kichen. If it is misspelt" in said
    assert house.people == "# family\nben@example.org\n" and "kitchen" not in house.tokens
    assert [person["state"] for person in house.gateway.people.values()] == ["disabled", "disabled"]
    assert not [path for path in house.api.requests if "@" in path or "%40" in path], "an address in the API server's log"


def test_the_proxys_token_is_rotated_in_one_go(house: House) -> None:
    encoded = house.tokens["proxy"]
    labels = {"hearth.homelab/gateway-token": "proxy"}
    consumer = {"name": "gateway-token-proxy", "namespace": "public-ingress", "labels": labels}
    house.gateway.cluster.create({"apiVersion": "v1", "kind": "Secret", "metadata": consumer, "data": {"token": encoded}})
    said, _changed = house.play("rotate_token", name="proxy")
    assert "The old value of proxy is refused." in said
    assert house.tokens["proxy"] != encoded and "proxy.previous" not in house.tokens
    assert house.data("Secret", "public-ingress", "gateway-token-proxy") == {"token": house.tokens["proxy"]}
    template = house.gateway.cluster.objects[("Deployment", "public-ingress", "oauth2-proxy-chat")]["spec"]["template"]
    assert "hearth.homelab/started-with-gateway-token-proxy" in template["metadata"]["annotations"]
    assert encoded not in said and house.tokens["proxy"] not in said


def test_a_program_elsewhere_gets_its_new_token_in_two_steps(house: House, tmp_path: Path) -> None:
    before = house.tokens["kitchen"]
    _code, said = ansible("playbooks/rotate_token.yml", "-e", json.dumps({"k3s_kubeconfig": str(house.api.kubeconfig), "name": "kitchen"}))
    assert "run this again with -e write_to=FILE" in said
    said, _changed = house.play("rotate_token", name="kitchen", write_to=str(tmp_path / "kitchen"))
    assert "the old one counts until this is run with -e settled=true" in said
    assert house.tokens["kitchen.previous"] == before and (tmp_path / "kitchen").stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "kitchen").read_text() not in said
    half = house.tokens["kitchen"]
    said, _changed = house.play("rotate_token", name="kitchen", write_to=str(tmp_path / "kitchen"))
    assert "A rotation of kitchen was still open, so this finished that one and made no newer value." in said
    assert house.tokens["kitchen"] == half
    said, _changed = house.play("rotate_token", name="kitchen", settled=True)
    assert "The old value of kitchen is refused." in said and "kitchen.previous" not in house.tokens


def test_the_house_is_locked_down_and_opened_again(house: House) -> None:
    before = house.tokens
    said, changed = house.play("lockdown")
    assert changed == 1 and "-e lifted=true" in said and house.people == ""
    assert not any(name[0].isalnum() for name in house.tokens)
    said, changed = house.play("lockdown", lifted=True)
    assert changed == 1 and "The doors are open again" in said and "kitchen, operator, proxy" in said
    assert house.tokens == before


def test_somebody_is_signed_out(house: House) -> None:
    said, changed = house.play("sign_out", email="ben@example.org")
    assert changed == 1 and "No session from before is good any more, on any device." in said
    assert house.data("Secret", "public-ingress", "oauth2-proxy-chat")["cookie-secret"] != "b2xk"
