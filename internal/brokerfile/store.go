package brokerfile

import (
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v4"

	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/ownership"
	"github.com/notation-hsm/notation-hsm/internal/store/postgres"
)

const (
	sqliteScheme = "sqlite:"
	// passwordScheme begins store-password.
	passwordScheme = "file:"
)

// postgresURL is the beginning of the URL of a database on PostgreSQL, as libpq has it.
var postgresURL = regexp.MustCompile(`^postgres(?:ql)?://`)

// Replicas is what a broker needs that shares its store with others.
type Replicas struct {
	Key  string `yaml:"key"`  // file with 64 hex digits, the same for all replicas
	Name string `yaml:"name"` // of this replica, for people; default: the host's name
}

// Period is a time of the calendar, written as "13 months".
type Period struct{ Years, Months, Days int }

var periodFormat = regexp.MustCompile(`^([1-9][0-9]{0,3}) (day|month|year)s?$`)

// UnmarshalYAML parses a period.
func (p *Period) UnmarshalYAML(node *yaml.Node) error {
	match := periodFormat.FindStringSubmatch(node.Value)
	if node.Kind != yaml.ScalarNode || match == nil {
		return fmt.Errorf("line %d: %q is no period in days, months or years, such as \"13 months\"", node.Line, node.Value)
	}
	count, err := strconv.Atoi(match[1])
	switch match[2] {
	case "day":
		p.Days = count
	case "month":
		p.Months = count
	default:
		p.Years = count
	}
	return err
}

// Before returns the time that is the period before another one.
func (p Period) Before(t time.Time) time.Time { return t.AddDate(-p.Years, -p.Months, -p.Days) }

// Shared reports whether the store is one on PostgreSQL, which several replicas use.
func (f *File) Shared() bool { return postgresURL.MatchString(f.Store) }

// StorePath returns the path of the SQLite database. It is "" for a store on PostgreSQL.
func (f *File) StorePath() string {
	if f.Shared() {
		return ""
	}
	return strings.TrimPrefix(f.Store, sqliteScheme)
}

// Folder returns the folder of what the broker keeps in files on its own machine: that of the SQLite database, or that
// of the checkpoint file of a replica.
func (f *File) Folder() string {
	if f.Shared() {
		return filepath.Dir(f.Log.CheckpointFile)
	}
	return filepath.Dir(f.StorePath())
}

// PasswordFile returns the file with the password of the store, or "".
func (f *File) PasswordFile() string { return strings.TrimPrefix(f.StorePassword, passwordScheme) }

// leastKeep is the shortest time that requests are kept: longer than one may wait for people, as the policy says.
var leastKeep = Period{Months: 6}

// checkStore checks the store, and what belongs to one that replicas share.
func (f *File) checkStore(add adding) {
	now := time.Now()
	if f.Keep != (Period{}) && f.Keep.Before(now).After(leastKeep.Before(now)) {
		add("keep", "use at least 6 months", "is shorter than requests may wait")
	}
	if f.Shared() {
		f.checkPostgres(add)
		return
	}
	if path, ok := strings.CutPrefix(f.Store, sqliteScheme); !ok || !absolute(path) {
		shown := f.Store
		if strings.Contains(shown, "@") { // it may have a password
			shown = "it"
		} else {
			shown = strconv.Quote(shown)
		}
		add("store", "write sqlite:PATH, with an absolute path, or postgres://USER@HOST/DATABASE", "%s is not a store", shown)
	}
	for _, one := range []struct {
		name  string
		given bool
	}{{"replicas", f.Replicas != nil}, {"store-password", f.StorePassword != ""}} {
		if one.given {
			add(one.name, "remove it, or name a database of PostgreSQL as the store", "is for a store on PostgreSQL alone")
		}
	}
}

// checkPostgres checks a store on PostgreSQL. No mistake shows the URL: it may have a password.
func (f *File) checkPostgres(add adding) {
	if err := postgres.CheckURL(f.Store); err != nil {
		e := failure.From(err)
		add("store", e.Hint, "%s", e.What)
	}
	if path, ok := strings.CutPrefix(f.StorePassword, passwordScheme); f.StorePassword != "" && (!ok || !absolute(path)) {
		add("store-password", "write file:PATH, with an absolute path", "it names no file")
	}
	switch r := f.Replicas; {
	case r == nil || r.Key == "":
		add("replicas", "set replicas.key to a file that 'openssl rand -hex 32' fills, the same for all replicas",
			"there is no key of the replicas")
	case !absolute(r.Key):
		add("replicas.key", "name the file by its absolute path", "%q is not an absolute path", r.Key)
	}
	if r := f.Replicas; r != nil && (len(r.Name) > maxReplicaName || strings.ContainsFunc(r.Name, unprintable)) {
		add("replicas.name", "use a short name, such as the host's",
			"has more than %d bytes, or a character that cannot be printed", maxReplicaName)
	}
}

const maxReplicaName = 100 // bytes

func unprintable(r rune) bool { return !strconv.IsPrint(r) }

// replicasKeyBytes is the length of the key of the replicas.
const replicasKeyBytes = 32

// ReplicasKey reads the key of the replicas, and returns its 32 bytes. Errors have no part of it.
func (f *File) ReplicasKey() ([]byte, error) {
	data, err := ownership.ReadSecret(f.Replicas.Key)
	if err != nil {
		return nil, err
	}
	key, err := hex.DecodeString(strings.TrimSpace(string(data)))
	if err != nil || len(key) != replicasKeyBytes {
		return nil, failure.New(failure.Invalid, "%s does not have 64 hex digits", f.Replicas.Key).
			WithHint("copy the file of another replica; the first one makes it with 'openssl rand -hex 32'")
	}
	return key, nil
}

// ReplicaName returns the name of this replica, for people.
func (f *File) ReplicaName() string {
	if f.Replicas.Name != "" {
		return f.Replicas.Name
	}
	host, err := os.Hostname()
	if err != nil {
		return "unnamed"
	}
	return host
}
