package main

import (
	"context"
	"errors"
	"net"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// The link has flannel's name, port and number, so that a firewall and a reset meet what they meet with k3s.
const (
	overlayLink = "flannel.1"
	overlayID   = 1
	overlayPort = 8472
	overlayMTU  = 1450
)

// joinOverlay leads traffic for the other nodes' pods over the kernel's VXLAN, and follows the nodes that come and go. It
// stands for flannel: a host's hardware address follows from its address here, where flannel writes it on the Node.
func (n *node) joinOverlay(ctx context.Context, own *net.IPNet) error {
	link, err := n.overlay()
	if err != nil {
		return wrapf(err, "%s", overlayLink)
	}
	address := &netlink.Addr{IPNet: &net.IPNet{IP: own.IP, Mask: net.CIDRMask(32, 32)}}
	if err := netlink.AddrReplace(link, address); err != nil {
		return wrapf(err, "%s", overlayLink)
	}
	if err := n.masquerade(); err != nil {
		return err
	}
	cl, err := newCluster(n.restConfig(n.dirs.agent("client-kube-proxy"))) // who may see every node's range
	if err != nil {
		return err
	}
	go every(ctx, 2*time.Second, "pod network", func() error {
		nodes, err := cl.core.Nodes().List(ctx, metav1.ListOptions{ResourceVersion: "0"})
		if err != nil {
			return err
		}
		return n.routeTo(link, nodes.Items)
	})
	return nil
}

func (n *node) overlay() (netlink.Link, error) {
	local := net.ParseIP(n.ip)
	found, err := netlink.LinkByName(overlayLink)
	if vxlan, ok := found.(*netlink.Vxlan); err == nil && ok && vxlan.SrcAddr.Equal(local) {
		return found, nil // kept, so that a restart interrupts nothing
	}
	if err == nil {
		if err := netlink.LinkDel(found); err != nil {
			return nil, err
		}
	}
	attributes := netlink.NewLinkAttrs()
	attributes.Name, attributes.MTU, attributes.HardwareAddr = overlayLink, overlayMTU, hardwareAddress(local)
	made := &netlink.Vxlan{LinkAttrs: attributes, VxlanId: overlayID, Port: overlayPort, SrcAddr: local, Learning: false}
	if err := netlink.LinkAdd(made); err != nil {
		return nil, err
	}
	return made, netlink.LinkSetUp(made)
}

// masquerade hides pods behind the host's address for all but pods. The comment is flannel's, by which a reset finds it.
func (n *node) masquerade() error {
	rule := []string{"POSTROUTING", "-s", n.ClusterCIDR, "!", "-d", n.ClusterCIDR, "-m", "comment", "--comment", "flanneld masq", "-j", "MASQUERADE"}
	tool := func(do string) error {
		return n.children.run("iptables", append([]string{"-w", "-t", "nat", do}, rule...)...)
	}
	if tool("-C") == nil {
		return nil
	}
	return tool("-A")
}

func hardwareAddress(host net.IP) net.HardwareAddr {
	return append(net.HardwareAddr{0x0e, 0xed}, host.To4()...)
}

// routeTo makes the routes be those to the nodes given and no others.
func (n *node) routeTo(link netlink.Link, nodes []corev1.Node) error {
	index := link.Attrs().Index
	want := map[string]bool{}
	var errs []error
	for _, node := range nodes {
		_, pods, err := net.ParseCIDR(node.Spec.PodCIDR)
		host := internalIP(node)
		if err != nil || host == nil || node.Name == n.name {
			continue
		}
		want[pods.String()] = true
		hardware := hardwareAddress(host)
		errs = append(errs,
			netlink.NeighSet(&netlink.Neigh{LinkIndex: index, Family: unix.AF_BRIDGE, State: netlink.NUD_PERMANENT,
				Flags: netlink.NTF_SELF, IP: host, HardwareAddr: hardware}),
			netlink.NeighSet(&netlink.Neigh{LinkIndex: index, State: netlink.NUD_PERMANENT, IP: pods.IP, HardwareAddr: hardware}),
			netlink.RouteReplace(&netlink.Route{LinkIndex: index, Dst: pods, Gw: pods.IP, Flags: int(netlink.FLAG_ONLINK)}))
	}
	routes, err := netlink.RouteList(link, netlink.FAMILY_V4)
	errs = append(errs, err)
	for _, route := range routes {
		if route.Gw != nil && !want[route.Dst.String()] {
			errs = append(errs, netlink.RouteDel(&route))
		}
	}
	return errors.Join(errs...)
}

func internalIP(node corev1.Node) net.IP {
	for _, address := range node.Status.Addresses {
		if address.Type == corev1.NodeInternalIP {
			return net.ParseIP(address.Address)
		}
	}
	return nil
}
