// Command k3s stands in for k3s on the test bed. k3s itself can be had from no registry here; this launcher
// starts the real Kubernetes components, containerd and kine under the same file names, configuration keys
// and command names, so that our roles run unchanged. It proves nothing about k3s itself: README.md beside
// this file lists what it honours, and every version line and report names it as a stand-in.
package main

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"

	"github.com/sirupsen/logrus"
)

// version is set when linking; two builds for upgrade tests differ in nothing else.
var version = "v0.0.0+unset"

const banner = "stand-in of the Hearth test bed, not k3s: real Kubernetes, containerd, kine and etcd behind k3s's names"

// later are the subcommands of k3s that this stand-in does not have.
var later = []string{
	"crictl", "check-config", "completion",
}

func main() {
	logrus.SetFormatter(&logrus.TextFormatter{FullTimestamp: true, DisableColors: true})
	args := os.Args[1:]
	if name := filepath.Base(os.Args[0]); slices.Contains([]string{"kubectl", "ctr", "crictl"}, name) {
		args = append([]string{name}, args...)
	}
	if err := run(args); err != nil {
		logrus.Fatal(err) // exit 1
	}
}

func run(args []string) error {
	command := ""
	if len(args) > 0 {
		command = args[0]
	}
	switch {
	case command == "--version" || command == "-v":
		fmt.Printf("k3s version %s (standin)\ngo version %s\n%s\n", version, runtime.Version(), banner)
		return nil
	case command == "" || command == "help" || command == "--help" || command == "-h":
		fmt.Printf("k3s %s: %s\n\nCommands: server, agent, kubectl, ctr, etcd-snapshot, secrets-encrypt, token, certificate\nNot in this stand-in: %s\n",
			version, banner, strings.Join(later, ", "))
		return nil
	case command == "server":
		return runServer(args[1:])
	case command == "agent":
		return runAgent(args[1:])
	case command == "etcd-snapshot":
		return runSnapshot(args[1:])
	case command == "token":
		return runToken(args[1:])
	case command == "certificate":
		return runCertificate(args[1:])
	case command == "secrets-encrypt":
		return runEncrypt(args[1:])
	case command == "kubectl":
		return runTool("kubectl", args[1:], map[string]string{"KUBECONFIG": "/etc/rancher/k3s/k3s.yaml"})
	case command == "ctr":
		return runTool("ctr", args[1:], map[string]string{
			"CONTAINERD_NAMESPACE": "k8s.io", "CONTAINERD_ADDRESS": containerdSocket})
	case slices.Contains(later, command):
		return fmt.Errorf("`k3s %s` is not in this stand-in (%s)", command, banner)
	}
	return fmt.Errorf("no help topic for %q", command)
}

// runTool replaces this process by a program of the payload. The defaults apply to variables that are unset.
func runTool(name string, args []string, defaults map[string]string) error {
	dataDir := os.Getenv("K3S_DATA_DIR")
	if dataDir == "" {
		dataDir = dataDirOf(defaultConfig)
	}
	d := dirs{dataDir}
	bin, err := d.unpack()
	if err != nil {
		return err
	}
	for variable, value := range defaults {
		// An agent has no kubeconfig: kubectl then tries localhost:8080 and says so, as with k3s.
		if _, err := os.Stat(value); os.Getenv(variable) == "" && (variable != "KUBECONFIG" || err == nil) {
			if err := os.Setenv(variable, value); err != nil {
				return err
			}
		}
	}
	program := filepath.Join(bin, name)
	if name == "kubectl" {
		program = filepath.Join(bin, "node")
	}
	return syscall.Exec(program, append([]string{name}, args...), os.Environ())
}

// dataDirOf reads the one key that kubectl and ctr need from the configuration of a server or agent.
func dataDirOf(config string) string {
	const fallback = "/var/lib/rancher/k3s"
	args, err := readConfig(config, false)
	if err != nil {
		return fallback // not our command's file: a broken one is for `server` to complain about
	}
	for _, arg := range slices.Backward(args) {
		if value, ok := strings.CutPrefix(arg, "--data-dir="); ok && value != "" {
			return value
		}
	}
	return fallback
}
