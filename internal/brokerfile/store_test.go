package brokerfile

import (
	"bytes"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/notation-hsm/notation-hsm/internal/failure"
)

// shared are the lines of a config for a store that replicas share.
const shared = `store: postgres://broker@db.example.com/broker?sslmode=verify-full&sslrootcert=/etc/hsm-broker/db-ca.pem
store-password: file:/etc/hsm-broker/db-password
replicas:
  key: /etc/hsm-broker/replicas.key
  name: broker-1
keep: 13 months
`

const sqliteStore = "store: sqlite:/var/lib/hsm-broker/broker.db\n"

// TestShared reads a config whose store replicas share.
func TestShared(t *testing.T) {
	t.Parallel()
	f := parse(t, replaced(t, sqliteStore, shared))
	if !f.Shared() || f.StorePath() != "" || f.Folder() != "/mnt/other" || f.ReplicaName() != "broker-1" ||
		f.PasswordFile() != "/etc/hsm-broker/db-password" {
		t.Errorf("%+v", f)
	}
	now := time.Date(2030, 1, 31, 12, 0, 0, 0, time.UTC)
	if got := f.Keep.Before(now); !got.Equal(time.Date(2028, 12, 31, 12, 0, 0, 0, time.UTC)) {
		t.Error(got)
	}
	alone := parse(t, replaced(t, sqliteStore, sqliteStore+"keep: 2 years\n"))
	if alone.Shared() || alone.Folder() != "/var/lib/hsm-broker" || alone.Keep != (Period{Years: 2}) {
		t.Errorf("%+v", alone)
	}
	host, err := os.Hostname()
	if f.Replicas.Name = ""; err != nil || f.ReplicaName() != host {
		t.Error(f.ReplicaName(), err)
	}
}

// TestStores finds mistakes of a store on PostgreSQL, each at its line. None shows a password.
func TestStores(t *testing.T) {
	t.Parallel()
	const noPassword = "store-password: file:/etc/hsm-broker/db-password\n"
	for _, c := range []struct{ old, new, want string }{
		{"broker@db", "broker:hunter2@db", "line 11: store: invalid URL of the database: it has a password (write the"},
		{"verify-full", "require", "line 11: store: invalid URL of the database: sslmode=require does not verify"},
		{noPassword, "", ""},
		{"postgres://", "postgresql://", ""},
		{"file:/etc/hsm-broker/db-password", "hunter2", "line 12: store-password: it names no file (write file:PATH"},
		{"file:/etc/hsm-broker/db-password", "file:db-password", "line 12: store-password: it names no file"},
		{"replicas:\n  key: /etc/hsm-broker/replicas.key\n  name: broker-1\n", "",
			"replicas: there is no key of the replicas"},
		{"  key: /etc/hsm-broker/replicas.key\n", "", "line 14: replicas: there is no key of the replicas"},
		{"/etc/hsm-broker/replicas.key", "replicas.key", `line 14: replicas.key: "replicas.key" is not an absolute path`},
		{"broker-1", strings.Repeat("a", 101), "line 15: replicas.name: has more than 100 bytes"},
		{"broker-1", `"a\nb"`, "line 15: replicas.name: has more than 100 bytes, or a character"},
		{"13 months", "1 day", "line 16: keep: is shorter than requests may wait (use at least 6 months)"},
		{"13 months", "5 months", "line 16: keep: is shorter"}, {"13 months", "6 months", ""}, {"13 months", "1 year", ""},
		{"13 months", "0 months", `line 16: "0 months" is no period in days, months or years, such as "13 months"`},
		{"13 months", "1 fortnight", `line 16: "1 fortnight" is no period`},
		{"13 months", "[13 months]", "line 16: "},
		{"postgres://", "mysql://", "line 11: store: it is not a store (write sqlite:PATH"},
		{"store: postgres://broker@db.example.com/broker?sslmode=verify-full&sslrootcert=/etc/hsm-broker/db-ca.pem\n",
			sqliteStore, "line 12: store-password: is for a store on PostgreSQL alone"},
		{"store: postgres://broker@db.example.com/broker?sslmode=verify-full&sslrootcert=/etc/hsm-broker/db-ca.pem\n",
			sqliteStore, "line 14: replicas: is for a store on PostgreSQL alone"},
	} {
		if !strings.Contains(shared, c.old) {
			t.Fatal(c.old)
		}
		_, mistakes := Parse([]byte(replaced(t, sqliteStore, strings.Replace(shared, c.old, c.new, 1))))
		if c.want == "" && len(mistakes) > 0 ||
			c.want != "" && !slices.ContainsFunc(mistakes, func(m Mistake) bool {
				return strings.Contains(m.String(), c.want)
			}) {
			t.Errorf("%q: the mistakes do not have %q:\n%v", c.new, c.want, mistakes)
		}
		if strings.Contains(mistakes.Error(), "hunter2") {
			t.Errorf("%q: a mistake shows the password:\n%v", c.new, mistakes)
		}
	}
}

// TestSharedDecisive keeps what decides the same on all replicas, and when their key is replaced.
func TestSharedDecisive(t *testing.T) {
	t.Parallel()
	var all [][]byte
	for _, text := range []string{sqliteStore, shared, strings.NewReplacer("broker-1", "broker-2", "replicas.key",
		"other.key", "13 months", "2 years", "db.example.com", "127.0.0.1").Replace(shared)} {
		data, err := parse(t, replaced(t, "    client-ca: /etc/hsm-broker/ca.pem\n", "", "mtls: {}", "unix: {users: [root]}",
			sqliteStore, text)).Decisive()
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, data)
	}
	if !bytes.Equal(all[0], all[1]) || !bytes.Equal(all[1], all[2]) {
		t.Errorf("%s", bytes.Join(all, []byte("\n")))
	}
}

// TestReplicasKey reads the key of the replicas, and refuses one that others can read or that is none.
func TestReplicasKey(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "replicas.key")
	f := &File{Replicas: &Replicas{Key: path}}
	write := func(text string, mode os.FileMode) {
		t.Helper()
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
	}
	write(strings.Repeat("0a", 32)+"\n", 0o600)
	if key, err := f.ReplicasKey(); err != nil || !bytes.Equal(key, bytes.Repeat([]byte{10}, 32)) {
		t.Errorf("%x, %v", key, err)
	}
	write(strings.Repeat("0a", 32)+"\n", 0o640)
	if _, err := f.ReplicasKey(); !failure.Is(err, failure.Denied) {
		t.Error(err)
	}
	for _, text := range []string{"", strings.Repeat("0a", 31), strings.Repeat("0a", 33), strings.Repeat("hunter22", 8)} {
		write(text, 0o600)
		if _, err := f.ReplicasKey(); !failure.Is(err, failure.Invalid) || strings.Contains(err.Error(), "hunter") {
			t.Errorf("%q: %v", text, err)
		}
	}
	f.Replicas.Key += "x"
	if _, err := f.ReplicasKey(); !failure.Is(err, failure.NotFound) {
		t.Error(err)
	}
}
