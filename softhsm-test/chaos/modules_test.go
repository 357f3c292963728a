package chaos

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"

	softhsmtest "github.com/notation-hsm/notation-hsm/softhsm-test"
)

// labels are the keys that every module has. One of them signs the log alone.
var labels = []string{"release", "freeze", "log"}

// module is a token of SoftHSM on a host of its own, which p11-kit serves.
type module struct {
	*host
	w       *world
	label   string
	dir     string
	library string // by which the replicas reach it
	shim    string
	process *process
}

// startModules makes the keys, and modules that all have them.
func (w *world) startModules() {
	w.t.Helper()
	for _, label := range labels {
		w.keys[label] = w.newKey()
	}
	client := ""
	for _, pattern := range []string{"/usr/lib/*/pkcs11/p11-kit-client.so", "/usr/lib64/pkcs11/p11-kit-client.so"} {
		if found, _ := filepath.Glob(pattern); len(found) > 0 {
			client = found[0]
		}
	}
	if client == "" {
		softhsmtest.Missing(w.t, "p11-kit-modules")
	}
	shim := softhsmtest.Shim(w.t, softhsmtest.Module(w.t))
	for n := range countModules {
		label := fmt.Sprintf("hsm-%d", n+1)
		m := &module{host: w.net.add(label), w: w, label: label, dir: filepath.Join(w.dir, label), shim: shim}
		m.library = w.compile("module.c", label+".so", "-DNAME=\""+label+"\"", "-DCLIENT=\""+client+"\"")
		w.must(os.MkdirAll(m.dir, 0o700))
		w.must(softhsmtest.WriteSoftHSMConfig(m.dir))
		m.tool("softhsm2-util", "--init-token", "--free", "--label", label, "--pin", softhsmtest.PIN, "--so-pin",
			softhsmtest.SOPIN)
		for i, key := range labels {
			file := w.file("key.pem", w.keyPEM(w.keys[key]))
			m.tool("softhsm2-util", "--import", file, "--token", label, "--pin", softhsmtest.PIN, "--label", key, "--id",
				fmt.Sprintf("0%d", i+1))
			w.must(os.Remove(file))
		}
		l := m.listen("tcp", m.address+":"+modulePort)
		go forward(l, func(ctx context.Context) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", m.socket())
		})
		m.start()
		w.modules = append(w.modules, m)
	}
}

// modulePort is where a module is reached over the network, which p11-kit itself does not use.
const modulePort = "2345"

func (m *module) socket() string { return filepath.Join(m.dir, "socket") }

func (m *module) environment() []string {
	return []string{"SOFTHSM2_CONF=" + filepath.Join(m.dir, "softhsm2.conf"), "SHIM_LOG=" + filepath.Join(m.dir, "calls"),
		"SHIM_MODULE=" + softhsmtest.Module(m.w.t), "SHIM_DELAY_MS=10"} // as one across a network
}

func (m *module) tool(name string, args ...string) {
	m.w.t.Helper()
	_, err := m.run(nil, m.environment(), softhsmtest.Program(m.w.t, name), args...)
	m.w.must(err)
}

// start starts the module's server.
func (m *module) start() {
	m.w.t.Helper()
	_ = os.Remove(m.socket())
	m.process = m.w.start(m.host, nil, m.environment(), m.label+".log", softhsmtest.Program(m.w.t, "p11-kit"), "server",
		"--foreground", "--provider", m.shim, "--name", m.socket(), "pkcs11:token="+m.label)
	m.w.until(m.label+" listens", func() bool {
		conn, err := net.Dial("unix", m.socket())
		if err == nil {
			conn.Close()
		}
		return err == nil
	})
}

// signatures returns how often the module was called to sign.
func (m *module) signatures() int {
	text, err := os.ReadFile(filepath.Join(m.dir, "calls"))
	if err != nil {
		return 0
	}
	return strings.Count(string(text), "C_Sign\n")
}
