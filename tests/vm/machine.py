"""A virtual machine in QEMU: for what hosts that share this machine's kernel cannot show.

The processor is emulated (TCG): slow, but it needs neither KVM nor root, and every module of Debian's kernel loads.
A machine lives inside `running(...)`. After it nothing is left: no process, no disk, no port. When the test run is
killed, the kernel ends QEMU with it, and the next run removes its folder.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import shlex
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from tests.testbed.bedlib.common import cache_dir, need_tools, remove_tree, run, say
from tests.vm.image import Image

# A quiet machine boots it in some 20 s. One whose cores are busy with other things has taken 270 s.
BOOT_DEADLINE_S = 480
MEMORY_MIB = 1024


class MachineError(Exception):
    """The machine did not do what was asked; the text ends with what it last said on its serial console."""


@dataclass
class Machine:
    """A running machine. `folder` holds its disk and keys, `serial` is all it said on its console."""

    folder: Path
    serial: Path
    process: subprocess.Popen[str]
    port: int

    @property
    def key(self) -> Path:
        return self.folder / "id_ed25519"

    @property
    def known_hosts(self) -> Path:
        return self.folder / "known_hosts"

    def ssh_options(self) -> list[str]:
        """Options that reach this machine and no other, whatever the user's own ssh configuration says."""
        options = {
            "IdentityFile": self.key, "IdentitiesOnly": "yes", "UserKnownHostsFile": self.known_hosts,
            "StrictHostKeyChecking": "yes", "BatchMode": "yes", "ConnectTimeout": 20,
        }  # fmt: skip
        return ["-F", "/dev/null", *[word for name, value in options.items() for word in ("-o", f"{name}={value}")]]

    def ssh(self, command: str, *, stdin: str = "", timeout_s: float = 120) -> str:
        """Run a shell command as root and return what it printed. Raises MachineError when it fails."""
        argv = ["ssh", *self.ssh_options(), "-p", str(self.port), "root@127.0.0.1", command]
        try:
            done = subprocess.run(argv, input=stdin, capture_output=True, text=True, check=False, timeout=timeout_s)
        except subprocess.TimeoutExpired:
            raise self.error(f"`{command}` took longer than {timeout_s:.0f} s") from None
        if done.returncode:
            said = f"{done.stdout[-2000:]}\n{done.stderr[-2000:]}".strip()
            raise self.error(f"`{command}` ended with {done.returncode}:\n{said}")
        return done.stdout

    def python(self, program: str, *arguments: str, timeout_s: float = 180) -> Any:
        """Run a Python program there and return the JSON that it prints."""
        return json.loads(self.ssh(shlex.join(["python3", "-", *arguments]), stdin=program, timeout_s=timeout_s))

    def boot_id(self) -> str:
        """Another one after each start of the kernel."""
        return self.ssh("cat /proc/sys/kernel/random/boot_id", timeout_s=60).strip()

    def wait(self, *, not_boot: str = "", deadline_s: float = BOOT_DEADLINE_S) -> str:
        """Wait until root can log in and systemd has started everything, and return the boot's id.

        not_boot: id of a boot that does not count, namely the one that is being shut down.
        Raises MachineError when QEMU ends, the kernel panics, the deadline passes, or units failed to start.
        """
        begun = time.monotonic()
        last = "nothing was tried"
        while time.monotonic() - begun < deadline_s:
            if self.process.poll() is not None:
                raise self.error(f"QEMU ended with {self.process.returncode}")
            if "Kernel panic" in self.console():
                raise self.error("the kernel has panicked")
            try:
                boot = self.boot_id()
            except MachineError as error:
                last = str(error).splitlines()[0]
            else:
                if boot != not_boot:
                    question = "systemctl is-system-running --wait || systemctl --failed --no-legend --plain"
                    state = self.ssh(question, timeout_s=deadline_s)
                    if state.split() != ["running"]:
                        raise self.error(f"systemd is not content: {' '.join(state.split())}")
                    say(f"  vm: up after {time.monotonic() - begun:.1f} s")
                    return boot
                last = "still the boot from before"
            time.sleep(1)
        raise self.error(f"nobody could log in within {deadline_s:.0f} s ({last})")

    def reboot(self) -> None:
        """Shut down and start again, as an administrator does it, and wait until the machine is back."""
        before = self.boot_id()
        # Through a timer: the connection ends with an answer instead of a broken pipe.
        self.ssh("systemd-run --quiet --on-active=1 --timer-property=AccuracySec=100ms systemctl reboot")
        self.wait(not_boot=before)

    def console(self) -> str:
        """All that the machine has said on its serial console."""
        return self.serial.read_text(errors="replace") if self.serial.exists() else ""

    def error(self, sentence: str) -> MachineError:
        """`sentence`, followed by the end of the serial console."""
        tail = "\n".join(f"  | {line}" for line in self.console().splitlines()[-25:])
        return MachineError(f"{sentence}\nserial console ({self.serial}):\n{tail}")


@contextlib.contextmanager
def running(image: Image, reports: Path, *, memory_mib: int = MEMORY_MIB) -> Iterator[Machine]:
    """Start a machine from `image`, wait until it is up, and end it without a trace.

    Its console is kept as `vm-serial.log` in `reports`. Raises MachineError when it does not come up.
    """
    need_tools({image.architecture.qemu: image.architecture.qemu_package, "setpriv": "util-linux", "ssh": "openssh-client"})
    reports.mkdir(parents=True, exist_ok=True)
    with _folder() as folder:
        key = folder / "id_ed25519"
        run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "hearth-vm-test", "-f", key)
        overlay = folder / "disk.qcow2"
        run("qemu-img", "create", "-q", "-f", "qcow2", "-b", image.disk, "-F", "qcow2", overlay)
        serial = reports / "vm-serial.log"
        serial.unlink(missing_ok=True)
        with (folder / "qemu.log").open("w+") as log:
            argv = _command(image, overlay, serial, (folder / "id_ed25519.pub").read_text().strip(), memory_mib)
            process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True)
            try:
                try:
                    port = _forwarded_port(process)
                except (MachineError, OSError, ValueError) as error:
                    process.kill()
                    process.wait()
                    log.seek(0)
                    raise MachineError(f"QEMU did not start ({error}): {log.read().strip()}") from error
                say(f"  vm: started, ssh on port {port} of 127.0.0.1")
                (folder / "known_hosts").write_text(f"[127.0.0.1]:{port} {image.host_key}\n")
                machine = Machine(folder, serial, process, port)
                machine.wait()
                yield machine
            finally:
                process.kill()  # the disk is thrown away: there is nothing to shut down cleanly
                process.wait()
                for pipe in (process.stdin, process.stdout):
                    if pipe is not None:
                        pipe.close()


@contextlib.contextmanager
def _folder() -> Iterator[Path]:
    """A folder for one machine. Those of runs that were killed are removed: nobody holds the lock on them any more."""
    parent = cache_dir() / "vm"
    parent.mkdir(parents=True, exist_ok=True)
    for old in parent.glob("run-*"):
        with contextlib.suppress(BlockingIOError, FileNotFoundError), _locked(old):
            remove_tree(old)
    folder = Path(tempfile.mkdtemp(prefix="run-", dir=parent))
    try:
        with _locked(folder):
            yield folder
    finally:
        remove_tree(folder)
        with contextlib.suppress(OSError):  # another machine's folder may lie beside it
            parent.rmdir()


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold the lock on a folder. Raises BlockingIOError when somebody else has it."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)


def _command(image: Image, overlay: Path, serial: Path, public_key: str, memory_mib: int) -> list[str]:
    # systemd puts the credential into root's authorized_keys: the image itself lets nobody in. A public key may
    # stand on a command line.
    key = " ".join(public_key.split()[:2])
    kernel_arguments = [
        f"console={image.architecture.console}", "root=/dev/vda", "rw", "quiet", "mitigations=off", "net.ifnames=0",
        f'"systemd.set_credential=ssh.authorized_keys.root:{key}"',
    ]  # fmt: skip
    return [
        # The kernel kills QEMU when the test run ends, however that ends.
        "setpriv", "--pdeathsig", "KILL", "nice", "-n", "10",
        image.architecture.qemu, "-nodefaults", "-no-user-config", "-display", "none",
        *image.architecture.machine, "-accel", "tcg,thread=multi,tb-size=512",
        "-smp", "2", "-m", str(memory_mib),
        "-kernel", str(image.kernel), "-initrd", str(image.initrd), "-append", " ".join(kernel_arguments),
        # unsafe: a crash of this machine may cost the overlay, which is thrown away anyhow.
        "-drive", f"file={overlay},if=virtio,format=qcow2,cache=unsafe",
        "-device", "virtio-rng-pci",
        # Port 0: the kernel chooses a free one, so that nobody can take it between choosing and binding.
        "-netdev", "user,id=net,hostfwd=tcp:127.0.0.1:0-:22", "-device", "virtio-net-pci,netdev=net",
        "-serial", f"file:{serial}", "-qmp", "stdio",
    ]  # fmt: skip


def _forwarded_port(process: subprocess.Popen[str]) -> int:
    """The port of 127.0.0.1 that leads to the machine's sshd. Asks QEMU through its machine protocol."""
    if process.stdin is None or process.stdout is None:
        raise MachineError("QEMU has no pipes")
    _receive(process.stdout)  # the greeting
    _send(process.stdin, "qmp_capabilities")
    _receive(process.stdout)
    _send(process.stdin, "human-monitor-command", **{"command-line": "info usernet"})
    answer = _receive(process.stdout)
    found = re.search(r"TCP\[HOST_FORWARD\]\s+\S+\s+127\.0\.0\.1\s+(\d+)\s", str(answer.get("return")))
    if not found:
        raise MachineError(f"no forwarded port in {answer}")
    return int(found.group(1))


def _send(pipe: IO[str], command: str, **arguments: str) -> None:
    pipe.write(json.dumps({"execute": command, "arguments": arguments}) + "\n")
    pipe.flush()


def _receive(pipe: IO[str]) -> dict[str, Any]:
    """The next message that is no event. Raises MachineError when QEMU has closed the pipe."""
    while True:
        line = pipe.readline()
        if not line:
            raise MachineError("its monitor is closed")
        message: dict[str, Any] = json.loads(line)
        if "event" not in message:
            return message
