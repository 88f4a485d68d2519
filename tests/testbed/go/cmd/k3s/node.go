package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/sirupsen/logrus"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

const cniNetwork = "10-standin-bridge.conflist"

// machineKubelet and machineContainerd are not k3s's settings. They are what the bed's hosts need, because a
// host there is a container: no CAP_SYS_RESOURCE (so no lower OOM score), cgroup v1, no cgroup of its own for
// quality-of-service classes, and one disk shared with everything else on the machine.
var machineKubelet = map[string]any{
	"cgroupDriver":           "cgroupfs",
	"cgroupsPerQOS":          false,
	"enforceNodeAllocatable": []string{},
	"failCgroupV1":           false,
	"oomScoreAdj":            0,
	"evictionHard":           map[string]string{"imagefs.available": "1%", "nodefs.available": "1%", "memory.available": "50Mi"},
}

const (
	machineContainerd     = "restrict_oom_score_adj = true"
	machineKubeProxyProxy = "proxy-mode=nftables"                  // the contract's: iptables mode is not proven here
	machineKubeProxyTrack = "conntrack-max-per-core=0"             // the sysctl is the machine's and read-only
	pauseImage            = "docker.io/rancher/mirrored-pause:bed" // packed in images/
)

func (n *node) startRuntime(ctx context.Context) error {
	n.hostNetwork()
	for _, folder := range []string{"/run/k3s/containerd", n.dirs.agent("containerd"), n.dirs.agent("etc", "containerd"),
		n.dirs.agent("etc", "cni", "net.d"), n.dirs.agent("etc", "kubelet.conf.d"), n.dirs.agent("images"),
		n.dirs.agent("pod-manifests")} {
		if err := os.MkdirAll(folder, 0o755); err != nil {
			return err
		}
	}
	if err := n.writeRegistries(registriesFile); err != nil {
		return err
	}
	config := n.dirs.agent("etc", "containerd", "config.toml")
	if err := writeFile(config, []byte(n.containerdConfig()), 0o600); err != nil {
		return err
	}
	log := n.dirs.agent("containerd", "containerd.log")
	if err := n.children.start("containerd", log, "containerd", "-c", config, "-a", containerdSocket); err != nil {
		return err
	}
	err := waitFor(ctx, "containerd is up", 30*time.Millisecond, func() error { return dialUnix(containerdSocket) })
	if err != nil {
		return err
	}
	return n.importImages(ctx)
}

// hostNetwork sets what k3s sets; a failure only warns, as there.
func (n *node) hostNetwork() {
	sysctls := []string{"net/ipv4/conf/all/forwarding", "net/ipv4/conf/default/forwarding"}
	if n.Backend != "none" || !n.NoKubeProxy {
		sysctls = append(sysctls, "net/bridge/bridge-nf-call-iptables")
	}
	for _, name := range sysctls {
		if err := os.WriteFile("/proc/sys/"+name, []byte("1"), 0o644); err != nil {
			logrus.Warnf("Failed to set sysctl %s=1: %v", name, err)
		}
	}
}

func (n *node) containerdConfig() string {
	cni := ""
	if n.Backend != "none" { // otherwise containerd's defaults, /etc/cni/net.d and /opt/cni/bin, where a CNI installs itself
		cni = fmt.Sprintf("  [plugins.'io.containerd.cri.v1.runtime'.cni]\n    bin_dirs = [%q]\n    conf_dir = %q\n",
			n.children.bin, n.dirs.agent("etc", "cni", "net.d"))
	}
	return fmt.Sprintf(`# Written by the k3s stand-in at every start.
version = 3
root = %q
state = "/run/k3s/containerd"
[grpc]
  address = %q
[plugins.'io.containerd.internal.v1.opt']
  path = %q
[plugins.'io.containerd.nri.v1.nri']
  disable = true
[plugins.'io.containerd.cri.v1.runtime']
  enable_unprivileged_ports = true
  %s
%s  [plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
    [plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc.options]
      BinaryName = %q
      Root = "/run/k3s/containerd/runc"
      SystemdCgroup = false
[plugins.'io.containerd.cri.v1.images']
  snapshotter = %q
[plugins.'io.containerd.cri.v1.images'.registry]
  config_path = %q
[plugins.'io.containerd.cri.v1.images'.pinned_images]
  sandbox = %q
`, n.dirs.agent("containerd"), containerdSocket, n.dirs.agent("containerd", "opt"), machineContainerd, cni, filepath.Join(n.children.bin, "runc"),
		n.cfg.text("snapshotter", "overlayfs"), n.registriesDir(), n.cfg.text("pause-image", pauseImage))
}

// startNode starts kubelet and kube-proxy and returns when the Node is registered, labelled and has a network.
func (n *node) startNode(ctx context.Context, cl *cluster) error {
	if err := n.writeKubeletConfig(); err != nil {
		return err
	}
	err := n.component("kubelet", []string{
		"config-dir=" + n.dirs.agent("etc", "kubelet.conf.d"),
		"hostname-override=" + n.name,
		"kubeconfig=" + n.dirs.agent("kubelet.kubeconfig"),
		"node-ip=" + n.ip,
		"root-dir=/var/lib/kubelet",
	}, "kubelet-arg")
	if err != nil {
		return err
	}
	if !n.NoKubeProxy {
		err := n.component("kube-proxy", []string{
			"cluster-cidr=" + n.ClusterCIDR,
			machineKubeProxyTrack,
			"healthz-bind-address=127.0.0.1",
			"hostname-override=" + n.name,
			"kubeconfig=" + n.dirs.agent("kubeproxy.kubeconfig"),
			machineKubeProxyProxy,
		}, "kube-proxy-arg")
		if err != nil {
			return err
		}
	}
	var own *corev1.Node
	err = waitFor(ctx, "Node is registered", 100*time.Millisecond, func() (err error) {
		own, err = cl.core.Nodes().Get(ctx, n.name, metav1.GetOptions{})
		if err == nil && n.Backend != "none" && own.Spec.PodCIDR == "" {
			return errors.New("no pod range yet")
		}
		return err
	})
	if err != nil {
		return err
	}
	if err := n.label(ctx, cl); err != nil {
		return wrapf(err, "labels of the node")
	}
	if n.Backend == "none" {
		return nil
	}
	_, pods, err := net.ParseCIDR(own.Spec.PodCIDR)
	if err != nil {
		return err
	}
	if err := n.writeCNI(pods); err != nil {
		return err
	}
	return n.joinOverlay(ctx, pods)
}

// label does what k3s does at every start: its own labels and those of the configuration. A label that left the
// configuration stays on the Node, as with k3s.
func (n *node) label(ctx context.Context, cl *cluster) error {
	labels := map[string]string{}
	if n.isServer {
		labels["node-role.kubernetes.io/control-plane"] = "true"
	}
	if n.member.Load() != nil {
		labels["node-role.kubernetes.io/etcd"] = "true"
	}
	for _, label := range n.cfg.list("node-label") {
		name, value, _ := strings.Cut(label, "=")
		labels[name] = value
	}
	patch, err := json.Marshal(map[string]any{"metadata": map[string]any{"labels": labels}})
	if err != nil {
		return err
	}
	_, err = cl.core.Nodes().Patch(ctx, n.name, types.MergePatchType, patch, metav1.PatchOptions{})
	return err
}

func (n *node) writeKubeletConfig() error {
	taints, err := taints(n.cfg.list("node-taint"))
	if err != nil {
		return err
	}
	config := map[string]any{
		"apiVersion": "kubelet.config.k8s.io/v1beta1",
		"kind":       "KubeletConfiguration",
		"authentication": map[string]any{
			"anonymous": map[string]any{"enabled": false},
			"webhook":   map[string]any{"enabled": true},
			"x509":      map[string]any{"clientCAFile": n.dirs.agent("client-ca.crt")},
		},
		"authorization":            map[string]any{"mode": "Webhook"},
		"clusterDNS":               []string{n.ClusterDNS},
		"clusterDomain":            n.Domain,
		"containerRuntimeEndpoint": "unix://" + containerdSocket,
		"failSwapOn":               false,
		"healthzBindAddress":       "127.0.0.1",
		"protectKernelDefaults":    n.cfg.on("protect-kernel-defaults"),
		"registerWithTaints":       taints,
		"resolvConf":               n.cfg.text("resolv-conf", "/etc/resolv.conf"),
		"serializeImagePulls":      false,
		"staticPodPath":            n.dirs.agent("pod-manifests"),
		"tlsCertFile":              n.dirs.agent("serving-kubelet.crt"),
		"tlsPrivateKeyFile":        n.dirs.agent("serving-kubelet.key"),
		"volumePluginDir":          n.volumePlugins(),
	}
	for name, value := range machineKubelet {
		config[name] = value
	}
	content, err := json.MarshalIndent(config, "", "  ") // JSON is YAML
	if err != nil {
		return err
	}
	return writeFile(n.dirs.agent("etc", "kubelet.conf.d", "00-k3s-defaults.conf"), content, 0o600)
}

func taints(specs []string) ([]map[string]string, error) {
	out := []map[string]string{}
	for _, spec := range specs {
		rest, effect, found := cutLast(spec, ":")
		if !found {
			return nil, fmt.Errorf("node-taint %q: want key=value:effect", spec)
		}
		name, value, _ := strings.Cut(rest, "=")
		out = append(out, map[string]string{"key": name, "value": value, "effect": effect})
	}
	return out, nil
}

func cutLast(s, sep string) (before, after string, found bool) {
	i := strings.LastIndex(s, sep)
	if i < 0 {
		return s, "", false
	}
	return s[:i], s[i+len(sep):], true
}

// writeCNI gives pods a bridge with addresses from the node's range. It stands for flannel. Host ports leave chains
// named CNI-*, and addresses lie in /var/lib/cni: both are among k3s's killall duties.
func (n *node) writeCNI(pods *net.IPNet) error {
	content, err := json.MarshalIndent(map[string]any{
		"cniVersion": "1.0.0",
		"name":       "cbr0",
		"plugins": []any{
			map[string]any{
				"type": "bridge", "bridge": "cni0", "isGateway": true, "hairpinMode": true, "mtu": overlayMTU,
				"ipam": map[string]any{
					"type":   "host-local",
					"ranges": []any{[]any{map[string]any{"subnet": pods.String()}}},
					"routes": []any{map[string]any{"dst": "0.0.0.0/0"}},
				},
			},
			map[string]any{"type": "portmap", "capabilities": map[string]any{"portMappings": true}},
		},
	}, "", "  ")
	if err != nil {
		return err
	}
	path := n.dirs.agent("etc", "cni", "net.d", cniNetwork)
	if old, err := os.ReadFile(path); err == nil && string(old) == string(content) {
		return nil // rewriting it would make containerd reload the network of running pods
	}
	return writeFile(path, content, 0o600)
}
