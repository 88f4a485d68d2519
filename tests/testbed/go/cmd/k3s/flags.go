package main

import "strings"

// support says what the stand-in does with a key.
type support int

const (
	acted    support = iota // what k3s does
	absent                  // it switches off, or sets up, a part that the stand-in never has
	accepted                // nothing; the key is reported
	refused                 // it would change where data lies or who owns it: starting without it would prove a lie
)

type valueKind int

const (
	text valueKind = iota
	flagBool
	number
	many // may be given several times; the values add up
)

type key struct {
	name  string
	short string // one letter, "" for none
	env   string // environment variable, "" for none
	kind  valueKind
	who   string // "server", "agent" or "both"
	does  support
}

// keyTable has the keys of the k3s command line and of config.yaml, from the k3s contract (§2) and the k3s
// documentation: whose they are, type, what the stand-in does with them, and then name|letter|environment variable.
const keyTable = `
both bool accepted: debug|K3S_DEBUG alsologtostderr with-node-id disable-default-registry-endpoint
both bool accepted: nonroot-devices selinux|K3S_SELINUX prefer-bundled-bin enable-pprof
both bool acted: protect-kernel-defaults
agent bool accepted: disable-apiserver-lb
both bool refused: docker rootless
both list accepted: node-external-ip node-internal-dns node-external-dns
both list acted: node-label node-taint node-ip|i kubelet-arg kube-proxy-arg
both number accepted: v
both number acted: lb-server-port|K3S_LB_SERVER_PORT
both text accepted: vmodule log|l private-registry image-credential-provider-bin-dir
both text accepted: image-credential-provider-config default-runtime flannel-iface flannel-conf flannel-cni-conf
both text accepted: vpn-auth|K3S_VPN_AUTH vpn-auth-file|K3S_VPN_AUTH_FILE
both text acted: config|c|K3S_CONFIG_FILE data-dir|d|K3S_DATA_DIR token|t|K3S_TOKEN token-file|K3S_TOKEN_FILE
both text acted: server|s|K3S_URL node-name|K3S_NODE_NAME pause-image resolv-conf|K3S_RESOLV_CONF snapshotter
both text acted: bind-address
both text refused: container-runtime-endpoint image-service-endpoint
server bool absent: disable-cloud-controller disable-network-policy disable-helm-controller
server bool accepted: tls-san-security flannel-ipv6-masq flannel-external-ip
server bool acted: cluster-init|K3S_CLUSTER_INIT etcd-expose-metrics etcd-disable-snapshots cluster-reset|K3S_CLUSTER_RESET
server bool accepted: kine-tls etcd-snapshot-compress etcd-s3
server bool accepted: etcd-s3-skip-ssl-verify etcd-s3-insecure disable-scheduler embedded-registry
server bool accepted: supervisor-metrics
server bool acted: disable-kube-proxy secrets-encryption|K3S_SECRETS_ENCRYPTION
server bool refused: disable-agent disable-apiserver disable-controller-manager
server bool refused: disable-etcd
server list absent: kube-cloud-controller-manager-arg
server list accepted: etcd-arg
server list acted: tls-san cluster-cidr service-cidr cluster-dns kube-apiserver-arg kube-controller-manager-arg
server list acted: kube-scheduler-arg disable
server number accepted: advertise-port
server number acted: https-listen-port etcd-snapshot-retention
server text absent: servicelb-namespace helm-job-image
server text accepted: write-kubeconfig-group|K3S_KUBECONFIG_GROUP write-kubeconfig-name egress-selector-mode
server text acted: etcd-snapshot-name etcd-snapshot-schedule-cron etcd-snapshot-dir cluster-reset-restore-path
server text accepted: etcd-snapshot-reconcile-interval etcd-s3-endpoint etcd-s3-endpoint-ca
server text accepted: etcd-s3-access-key|AWS_ACCESS_KEY_ID etcd-s3-secret-key|AWS_SECRET_ACCESS_KEY etcd-s3-bucket
server text accepted: etcd-s3-region etcd-s3-folder etcd-s3-proxy etcd-s3-config-secret etcd-s3-timeout
server text accepted: system-default-registry|K3S_SYSTEM_DEFAULT_REGISTRY
server text acted: secrets-encryption-provider|K3S_SECRETS_ENCRYPTION_PROVIDER
server text acted: advertise-address service-node-port-range cluster-domain flannel-backend
server text acted: write-kubeconfig|o|K3S_KUBECONFIG_OUTPUT write-kubeconfig-mode|K3S_KUBECONFIG_MODE
server text acted: agent-token|K3S_AGENT_TOKEN agent-token-file|K3S_AGENT_TOKEN_FILE default-local-storage-path
server text refused: datastore-endpoint|K3S_DATASTORE_ENDPOINT
server text refused: datastore-cafile|K3S_DATASTORE_CAFILE datastore-certfile|K3S_DATASTORE_CERTFILE
server text refused: datastore-keyfile|K3S_DATASTORE_KEYFILE
`

// keys is the one list that the parser, the unknown-key rule and the report of what has no effect all read.
var keys = readTable(keyTable)

func readTable(table string) []key {
	kinds := map[string]valueKind{"text": text, "bool": flagBool, "number": number, "list": many}
	does := map[string]support{"acted": acted, "absent": absent, "accepted": accepted, "refused": refused}
	var out []key
	for _, line := range strings.Split(strings.TrimSpace(table), "\n") {
		head, cells, _ := strings.Cut(line, ": ")
		words := strings.Fields(head)
		kind, known := kinds[words[1]]
		effect, knownToo := does[words[2]]
		if !known || !knownToo {
			panic("key table: " + line) // the zero value would say that the key is acted on
		}
		for _, cell := range strings.Fields(cells) {
			k := key{who: words[0], kind: kind, does: effect}
			for i, part := range strings.Split(cell, "|") {
				switch {
				case i == 0:
					k.name = part
				case len(part) == 1:
					k.short = part
				default:
					k.env = part
				}
			}
			out = append(out, k)
		}
	}
	return out
}

// listsByComma are the list keys that k3s also splits at commas. Arguments and labels are not among them,
// because a comma may be part of their value.
var listsByComma = map[string]bool{
	"disable": true, "tls-san": true, "node-ip": true, "node-external-ip": true,
	"cluster-cidr": true, "service-cidr": true, "cluster-dns": true,
}
