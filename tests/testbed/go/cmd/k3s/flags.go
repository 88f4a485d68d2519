package main

// The keys of the k3s command line and of config.yaml, from the k3s contract (§2) and the k3s documentation.
// They are a table so that the unit tests, the unknown-key rule and the report of what is not acted on all
// read the same list.

type valueKind int

const (
	text valueKind = iota
	flagBool
	number
	many // may be given several times; the values add up
)

type support int

const (
	acted    support = iota // the stand-in does what k3s does
	absent                  // switches off, or sets up, a part that the stand-in never has
	accepted                // understood and reported, without effect
	refused                 // would change where data lies or who owns it: starting without it would prove a lie
)

type key struct {
	name  string
	kind  valueKind
	agent bool // `k3s agent` knows it too
	does  support
	env   string
	short string
}

const (
	server = false
	both   = true
)

var keys = []key{
	{"config", text, both, acted, "K3S_CONFIG_FILE", "c"},
	{"debug", flagBool, both, accepted, "K3S_DEBUG", ""},
	{"v", number, both, accepted, "", ""},
	{"vmodule", text, both, accepted, "", ""},
	{"log", text, both, accepted, "", "l"},
	{"alsologtostderr", flagBool, both, accepted, "", ""},

	{"data-dir", text, both, acted, "K3S_DATA_DIR", "d"},
	{"token", text, both, acted, "K3S_TOKEN", "t"},
	{"token-file", text, both, acted, "K3S_TOKEN_FILE", ""},
	{"server", text, both, acted, "K3S_URL", "s"},
	{"node-name", text, both, acted, "K3S_NODE_NAME", ""},
	{"with-node-id", flagBool, both, accepted, "", ""},
	{"node-label", many, both, acted, "", ""},
	{"node-taint", many, both, acted, "", ""},
	{"node-ip", many, both, acted, "", "i"},
	{"node-external-ip", many, both, accepted, "", ""},
	{"node-internal-dns", many, both, accepted, "", ""},
	{"node-external-dns", many, both, accepted, "", ""},
	{"kubelet-arg", many, both, acted, "", ""},
	{"kube-proxy-arg", many, both, acted, "", ""},
	{"protect-kernel-defaults", flagBool, both, acted, "", ""},
	{"pause-image", text, both, acted, "", ""},
	{"resolv-conf", text, both, acted, "K3S_RESOLV_CONF", ""},
	{"snapshotter", text, both, acted, "", ""},
	{"private-registry", text, both, accepted, "", ""},
	{"disable-default-registry-endpoint", flagBool, both, accepted, "", ""},
	{"image-credential-provider-bin-dir", text, both, accepted, "", ""},
	{"image-credential-provider-config", text, both, accepted, "", ""},
	{"docker", flagBool, both, refused, "", ""},
	{"container-runtime-endpoint", text, both, refused, "", ""},
	{"image-service-endpoint", text, both, refused, "", ""},
	{"default-runtime", text, both, accepted, "", ""},
	{"nonroot-devices", flagBool, both, accepted, "", ""},
	{"lb-server-port", number, both, accepted, "K3S_LB_SERVER_PORT", ""},
	{"bind-address", text, both, acted, "", ""},
	{"flannel-iface", text, both, accepted, "", ""},
	{"flannel-conf", text, both, accepted, "", ""},
	{"flannel-cni-conf", text, both, accepted, "", ""},
	{"vpn-auth", text, both, accepted, "K3S_VPN_AUTH", ""},
	{"vpn-auth-file", text, both, accepted, "K3S_VPN_AUTH_FILE", ""},
	{"selinux", flagBool, both, accepted, "K3S_SELINUX", ""},
	{"prefer-bundled-bin", flagBool, both, accepted, "", ""},
	{"rootless", flagBool, both, refused, "", ""},
	{"enable-pprof", flagBool, both, accepted, "", ""},

	{"https-listen-port", number, server, acted, "", ""},
	{"advertise-address", text, server, acted, "", ""},
	{"advertise-port", number, server, accepted, "", ""},
	{"tls-san", many, server, acted, "", ""},
	{"tls-san-security", flagBool, server, accepted, "", ""},
	{"cluster-cidr", many, server, acted, "", ""},
	{"service-cidr", many, server, acted, "", ""},
	{"service-node-port-range", text, server, acted, "", ""},
	{"cluster-dns", many, server, acted, "", ""},
	{"cluster-domain", text, server, acted, "", ""},
	{"flannel-backend", text, server, acted, "", ""},
	{"flannel-ipv6-masq", flagBool, server, accepted, "", ""},
	{"flannel-external-ip", flagBool, server, accepted, "", ""},
	{"egress-selector-mode", text, server, accepted, "", ""},
	{"servicelb-namespace", text, server, absent, "", ""},
	{"write-kubeconfig", text, server, acted, "K3S_KUBECONFIG_OUTPUT", "o"},
	{"write-kubeconfig-mode", text, server, acted, "K3S_KUBECONFIG_MODE", ""},
	{"write-kubeconfig-group", text, server, acted, "K3S_KUBECONFIG_GROUP", ""},
	{"write-kubeconfig-name", text, server, accepted, "", ""},
	{"helm-job-image", text, server, absent, "", ""},
	{"agent-token", text, server, acted, "K3S_AGENT_TOKEN", ""},
	{"agent-token-file", text, server, acted, "K3S_AGENT_TOKEN_FILE", ""},
	{"cluster-init", flagBool, server, accepted, "K3S_CLUSTER_INIT", ""},
	{"cluster-reset", flagBool, server, refused, "K3S_CLUSTER_RESET", ""},
	{"cluster-reset-restore-path", text, server, refused, "", ""},
	{"kube-apiserver-arg", many, server, acted, "", ""},
	{"kube-controller-manager-arg", many, server, acted, "", ""},
	{"kube-scheduler-arg", many, server, acted, "", ""},
	{"kube-cloud-controller-manager-arg", many, server, absent, "", ""},
	{"etcd-arg", many, server, accepted, "", ""},
	{"datastore-endpoint", text, server, refused, "K3S_DATASTORE_ENDPOINT", ""},
	{"datastore-cafile", text, server, refused, "K3S_DATASTORE_CAFILE", ""},
	{"datastore-certfile", text, server, refused, "K3S_DATASTORE_CERTFILE", ""},
	{"datastore-keyfile", text, server, refused, "K3S_DATASTORE_KEYFILE", ""},
	{"kine-tls", flagBool, server, accepted, "", ""},
	{"etcd-expose-metrics", flagBool, server, accepted, "", ""},
	{"etcd-disable-snapshots", flagBool, server, accepted, "", ""},
	{"etcd-snapshot-name", text, server, accepted, "", ""},
	{"etcd-snapshot-schedule-cron", text, server, accepted, "", ""},
	{"etcd-snapshot-retention", number, server, accepted, "", ""},
	{"etcd-snapshot-dir", text, server, accepted, "", ""},
	{"etcd-snapshot-compress", flagBool, server, accepted, "", ""},
	{"etcd-snapshot-reconcile-interval", text, server, accepted, "", ""},
	{"etcd-s3", flagBool, server, accepted, "", ""},
	{"etcd-s3-endpoint", text, server, accepted, "", ""},
	{"etcd-s3-endpoint-ca", text, server, accepted, "", ""},
	{"etcd-s3-skip-ssl-verify", flagBool, server, accepted, "", ""},
	{"etcd-s3-access-key", text, server, accepted, "AWS_ACCESS_KEY_ID", ""},
	{"etcd-s3-secret-key", text, server, accepted, "AWS_SECRET_ACCESS_KEY", ""},
	{"etcd-s3-bucket", text, server, accepted, "", ""},
	{"etcd-s3-region", text, server, accepted, "", ""},
	{"etcd-s3-folder", text, server, accepted, "", ""},
	{"etcd-s3-proxy", text, server, accepted, "", ""},
	{"etcd-s3-config-secret", text, server, accepted, "", ""},
	{"etcd-s3-insecure", flagBool, server, accepted, "", ""},
	{"etcd-s3-timeout", text, server, accepted, "", ""},
	{"default-local-storage-path", text, server, acted, "", ""},
	{"disable", many, server, acted, "", ""},
	{"disable-scheduler", flagBool, server, accepted, "", ""},
	{"disable-cloud-controller", flagBool, server, absent, "", ""},
	{"disable-kube-proxy", flagBool, server, acted, "", ""},
	{"disable-network-policy", flagBool, server, absent, "", ""},
	{"disable-helm-controller", flagBool, server, absent, "", ""},
	{"disable-apiserver", flagBool, server, refused, "", ""},
	{"disable-controller-manager", flagBool, server, refused, "", ""},
	{"disable-etcd", flagBool, server, refused, "", ""},
	{"embedded-registry", flagBool, server, accepted, "", ""},
	{"supervisor-metrics", flagBool, server, accepted, "", ""},
	{"system-default-registry", text, server, accepted, "K3S_SYSTEM_DEFAULT_REGISTRY", ""},
	{"secrets-encryption", flagBool, server, accepted, "K3S_SECRETS_ENCRYPTION", ""},
	{"secrets-encryption-provider", text, server, accepted, "K3S_SECRETS_ENCRYPTION_PROVIDER", ""},
}

// listsByComma are the list keys that k3s also splits at commas. Arguments and labels are not among them,
// because a comma may be part of their value.
var listsByComma = map[string]bool{
	"disable": true, "tls-san": true, "node-ip": true, "node-external-ip": true,
	"cluster-cidr": true, "service-cidr": true, "cluster-dns": true,
}
