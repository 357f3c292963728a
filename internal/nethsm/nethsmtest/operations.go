package nethsmtest

import "strings"

// operation is an operation with its properties in the description. TestOperations compares the two.
type operation struct {
	method, path string // the path as the description has it
	roles        []Role // who may call; empty for the public
	public       bool   // with roles: in any state but Operational everyone may call
	states       []State
	rootOnly     bool     // users of a namespace may not call
	rootReadsAll bool     // callers of the root namespace may name users of any
	takes        []string // content types of the request
	gives        string   // content type of a success; empty without a body
	handle       func(*call) *reply
}

var (
	anyState    = []State{Locked, Operational, Unprovisioned, Failed}
	operational = []State{Operational}
	running     = []State{Operational, Failed}

	admin           = []Role{Administrator}
	operator        = []Role{Operator}
	adminOrOperator = []Role{Administrator, Operator}
	metrics         = []Role{Metrics}
	backup          = []Role{Backup}

	takesJSON = []string{typeJSON}
	takesKey  = []string{typeJSON, typeForm}
	takesPEM  = []string{typePEM}
	takesData = []string{typeBinary}
)

// all are the operations of the description.
var all = []*operation{
	{method: "GET", path: "/info", states: anyState, gives: typeJSON, handle: getInfo},
	{method: "GET", path: "/health/alive", states: []State{Locked, Unprovisioned}, handle: getHealth},
	{method: "GET", path: "/health/ready", states: operational, handle: getHealth},
	{method: "GET", path: "/health/state", states: anyState, gives: typeJSON, handle: getState},
	{method: "GET", path: "/health/diagnose", states: anyState, roles: admin, public: true, gives: typeJSON,
		handle: getDiagnose},
	use("GET", "/metrics", metrics, nil, typeJSON, getMetrics),
	{method: "POST", path: "/provision", states: []State{Unprovisioned}, takes: takesJSON, handle: postProvision},
	{method: "POST", path: "/unlock", states: []State{Locked}, takes: takesJSON, handle: postUnlock},
	root("POST", "/lock", admin, nil, "", postLock),
	use("POST", "/random", operator, takesJSON, typeJSON, postRandom),

	use("GET", "/keys", adminOrOperator, nil, typeJSON, listKeys),
	use("POST", "/keys", admin, takesKey, typeJSON, importKey),
	use("POST", "/keys/generate", admin, takesJSON, typeJSON, generateKey),
	use("GET", "/keys/{KeyPrefix}*", adminOrOperator, nil, typeJSON, listKeys),
	use("GET", "/keys/{KeyID}", adminOrOperator, nil, typeJSON, getKey),
	use("PUT", "/keys/{KeyID}", admin, takesKey, "", importKey),
	use("DELETE", "/keys/{KeyID}", admin, nil, "", deleteKey),
	use("PUT", "/keys/{KeyID}/label", admin, takesJSON, "", setLabel),
	use("DELETE", "/keys/{KeyID}/label", admin, nil, "", deleteLabel),
	use("GET", "/keys/{KeyID}/public.pem", adminOrOperator, nil, typePEM, getPublicKey),
	use("POST", "/keys/{KeyID}/csr.pem", adminOrOperator, takesJSON, typePEM, postKeyCSR),
	use("POST", "/keys/{KeyID}/decrypt", operator, takesJSON, typeJSON, postDecrypt),
	use("POST", "/keys/{KeyID}/encrypt", operator, takesJSON, typeJSON, postEncrypt),
	use("POST", "/keys/{KeyID}/sign", operator, takesJSON, typeJSON, postSign),
	use("GET", "/keys/{KeyID}/cert", adminOrOperator, nil, typeBinary, getCertificate),
	use("PUT", "/keys/{KeyID}/cert", admin, takesData, "", setCertificate),
	use("DELETE", "/keys/{KeyID}/cert", admin, nil, "", deleteCertificate),
	use("POST", "/keys/{KeyID}/move", admin, takesJSON, typeJSON, moveKey),
	use("PUT", "/keys/{KeyID}/restrictions/tags/{Tag}", admin, nil, "", addKeyTag),
	use("DELETE", "/keys/{KeyID}/restrictions/tags/{Tag}", admin, nil, "", deleteKeyTag),

	root("GET", "/namespaces", admin, nil, typeJSON, listNamespaces),
	root("PUT", "/namespaces/{NamespaceID}", admin, nil, "", createNamespace),
	root("DELETE", "/namespaces/{NamespaceID}", admin, nil, "", deleteNamespace),
	use("GET", "/users", admin, nil, typeJSON, listUsers),
	use("POST", "/users", admin, takesJSON, typeJSON, createUser),
	readsAll(use("GET", "/users/{UserID}", adminOrOperator, nil, typeJSON, getUser)),
	use("PUT", "/users/{UserID}", admin, takesJSON, "", createUser),
	use("POST", "/users/{UserID}", admin, takesJSON, typeJSON, createUser),
	use("DELETE", "/users/{UserID}", admin, nil, "", deleteUser),
	use("POST", "/users/{UserID}/passphrase", adminOrOperator, takesJSON, "", setUserPassphrase),
	readsAll(use("GET", "/users/{UserID}/tags", adminOrOperator, nil, typeJSON, listUserTags)),
	use("PUT", "/users/{UserID}/tags/{Tag}", admin, nil, "", addUserTag),
	use("DELETE", "/users/{UserID}/tags/{Tag}", admin, nil, "", deleteUserTag),

	root("PUT", "/config/unlock-passphrase", admin, takesJSON, "", setUnlockPassphrase),
	root("GET", "/config/unattended-boot", admin, nil, typeJSON, getUnattendedBoot),
	root("PUT", "/config/unattended-boot", admin, takesJSON, "", setUnattendedBoot),
	root("GET", "/config/tls/public.pem", admin, nil, typePEM, getTLSPublicKey),
	root("GET", "/config/tls/cert.pem", admin, nil, typePEM, getTLSCertificate),
	root("PUT", "/config/tls/cert.pem", admin, takesPEM, "", setTLSCertificate),
	root("POST", "/config/tls/csr.pem", admin, takesJSON, typePEM, postTLSCSR),
	root("POST", "/config/tls/generate", admin, takesJSON, "", generateTLSKey),
	root("GET", "/config/tls/cluster-ca.pem", admin, nil, typePEM, getClusterCA),
	root("PUT", "/config/tls/cluster-ca.pem", admin, takesPEM, "", setClusterCA),
	root("GET", "/config/network", admin, nil, typeJSON, getNetwork),
	root("PUT", "/config/network", admin, takesJSON, "", setNetwork),
	root("GET", "/config/logging", admin, nil, typeJSON, getLogging),
	root("PUT", "/config/logging", admin, takesJSON, "", setLogging),
	root("PUT", "/config/backup-passphrase", admin, takesJSON, "", setBackupPassphrase),
	root("GET", "/config/time", admin, nil, typeJSON, getTime),
	root("PUT", "/config/time", admin, takesJSON, "", setTime),

	root("GET", "/system/info", admin, nil, typeJSON, getSystemInfo),
	{method: "POST", path: "/system/reboot", states: running, roles: admin, rootOnly: true, handle: postReboot},
	{method: "POST", path: "/system/shutdown", states: anyState, roles: admin, public: true, rootOnly: true,
		handle: postShutdown},
	{method: "POST", path: "/system/factory-reset", states: running, roles: admin, rootOnly: true,
		handle: postFactoryReset},
	root("POST", "/system/backup", backup, nil, typeBinary, postBackup),

	root("GET", "/cluster/members", admin, nil, typeJSON, listMembers),
	root("POST", "/cluster/members", admin, takesJSON, typeJSON, postMember),
	root("POST", "/cluster/members/{MemberID}/promote", admin, nil, "", promoteMember),
	root("PUT", "/cluster/members/{MemberID}", admin, takesJSON, "", updateMember),
	root("DELETE", "/cluster/members/{MemberID}", admin, nil, "", deleteMember),

	// Without a handler: the response is 501. Nothing here uses them, and an imitation would prove nothing:
	// restoring and joining need Nitrokey's own formats, updates its signed images, and force-new a broken etcd.
	{method: "POST", path: "/system/restore"},
	{method: "POST", path: "/system/update"},
	{method: "POST", path: "/system/commit-update"},
	{method: "POST", path: "/system/cancel-update"},
	{method: "POST", path: "/cluster/join"},
	{method: "POST", path: "/cluster/force-new"},
}

// use returns an operation of an operational NetHSM for callers of any namespace; gives is empty without a body.
func use(method, path string, roles []Role, takes []string, gives string, handle func(*call) *reply) *operation {
	return &operation{method: method, path: path, states: operational, roles: roles, takes: takes, gives: gives,
		handle: handle}
}

// root returns an operation for callers of the root namespace.
func root(method, path string, roles []Role, takes []string, gives string, handle func(*call) *reply) *operation {
	o := use(method, path, roles, takes, gives, handle)
	o.rootOnly = true
	return o
}

// readsAll lets callers of the root namespace name users of any.
func readsAll(o *operation) *operation {
	o.rootReadsAll = true
	return o
}

// route returns the operations of a path, by method. A fixed name wins over a parameter: /keys/generate is no key.
func route(p string) []*operation {
	var found []*operation
	best := -1
	for _, o := range all {
		switch rank := o.match(p); {
		case rank < 0 || rank < best:
		case rank > best:
			best, found = rank, []*operation{o}
		default:
			found = append(found, o)
		}
	}
	return found
}

// match returns how many segments of a path are fixed, or -1 if the path does not match.
func (o *operation) match(p string) int {
	want, have := strings.Split(o.path, "/"), strings.Split(p, "/")
	if len(want) != len(have) {
		return -1
	}
	rank := 0
	for i := range want {
		_, suffix, parameter := parameterOf(want[i])
		switch {
		case !parameter && want[i] == have[i]:
			rank += 3
		case parameter && suffix != "" && strings.HasSuffix(have[i], suffix):
			rank += 2
		case parameter && suffix == "" && have[i] != "":
			rank++
		default:
			return -1
		}
	}
	return rank
}

func (o *operation) params(p string) map[string]string {
	found := map[string]string{}
	have := strings.Split(p, "/")
	for i, segment := range strings.Split(o.path, "/") {
		if name, suffix, parameter := parameterOf(segment); parameter {
			found[name] = strings.TrimSuffix(have[i], suffix)
		}
	}
	return found
}

// parameterOf splits a segment such as {KeyPrefix}* into its name and what follows it.
func parameterOf(segment string) (name, suffix string, parameter bool) {
	if inner, found := strings.CutPrefix(segment, "{"); found {
		name, suffix, parameter = strings.Cut(inner, "}")
	}
	return name, suffix, parameter
}
