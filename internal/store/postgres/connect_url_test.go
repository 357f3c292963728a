package postgres

import (
	"reflect"
	"strings"
	"testing"

	"github.com/notation-hsm/notation-hsm/internal/failure"
)

func TestParseURL(t *testing.T) {
	t.Parallel()
	tests := map[string]address{
		"postgres://broker@db.example.com/signing": {user: "broker", database: "signing",
			hosts: []host{{"db.example.com", 5432}}},
		"postgresql://b%40x@db1:5433,db2,[2001:db8::1]:5434/a%23b?sslmode=verify-full&target_session_attrs=read-write": {
			user: "b@x", database: "a#b", hosts: []host{{"db1", 5433}, {"db2", 5432}, {"2001:db8::1", 5434}}},
		"postgres://broker@/signing?host=/run/postgresql&port=5433": {user: "broker", database: "signing",
			hosts: []host{{"/run/postgresql", 5433}}},
		"postgres://broker@/signing?host=db1,db2&port=5433": {user: "broker", database: "signing",
			hosts: []host{{"db1", 5433}, {"db2", 5433}}},
		"postgres://broker@127.0.0.1,[::1],localhost/signing?sslmode=disable": {user: "broker", database: "signing",
			hosts: []host{{"127.0.0.1", 5432}, {"::1", 5432}, {"localhost", 5432}}, plain: true},
		"postgres://broker@db/signing?sslrootcert=/ca&sslcert=/cert&sslkey=/key&passfile=/pass": {user: "broker",
			database: "signing", hosts: []host{{"db", 5432}}, rootCert: "/ca", cert: "/cert", key: "/key",
			passfile: "/pass"},
		"postgres://broker@db/signing?sslrootcert=system": {user: "broker", database: "signing",
			hosts: []host{{"db", 5432}}},
	}
	for text, want := range tests {
		got, err := parseURL(text)
		if err != nil {
			t.Errorf("%s: %v", text, err)
			continue
		}
		if !reflect.DeepEqual(*got, want) {
			t.Errorf("%s: %+v, not %+v", text, *got, want)
		}
	}
}

// TestParseURLRefused verifies what URLs are refused, and that no failure shows what may be a password.
func TestParseURLRefused(t *testing.T) {
	t.Parallel()
	tests := map[string]string{
		"":                                                           "does not begin with",
		"host=db user=broker":                                        "does not begin with",
		"mysql://broker@db/x":                                        "does not begin with",
		"postgres://broker:SECRET@db/x":                              "has a password",
		"postgres://broker:@db/x":                                    "has a password",
		"postgres://broker:SE@CRET@db/x":                             "has a password",
		"postgres://broker:SE/CRET@db/x":                             "no role", // it ends at the slash, so there is no @
		"postgres://broker@db/x?password=SECRET":                     "has a password",
		"postgres://broker@db/x?sslpassword=SECRET":                  "has a password",
		"postgres://db/x":                                            "no role",
		"postgres://@db/x":                                           "no role",
		"postgres://broker@db":                                       "no database",
		"postgres://broker@db/":                                      "no database",
		"postgres://broker@db/x/y":                                   "no database",
		"postgres://broker@/x":                                       "no host",
		"postgres://broker@db,/x":                                    "neither a name",
		"postgres://broker@db:/x":                                    "empty port",
		"postgres://broker@db:SECRET/x":                              "no number",
		"postgres://broker@db:0/x":                                   "no number",
		"postgres://broker@db:65536/x":                               "no number",
		"postgres://broker@db:1:2/x":                                 "neither a name",
		"postgres://broker@[db]/x":                                   "brackets",
		"postgres://broker@[::1/x":                                   "",
		"postgres://broker@db/x?host=other":                          "names hosts twice",
		"postgres://broker@/x?host=a,b&port=1,2,3":                   "2 hosts and 3 ports",
		"postgres://broker@/x?host=@abstract":                        "neither a name",
		"postgres://broker@" + strings.Repeat("db,", 16) + "db/x":    "more than 16",
		"postgres://broker@db/x#y":                                   "fragment",
		"postgres://broker@db/x?sslmode=disable":                     "db is not on it",
		"postgres://broker@localhost,db/x?sslmode=disable":           "db is not on it",
		"postgres://broker@db/x?sslmode=require":                     "does not verify",
		"postgres://broker@db/x?sslmode=prefer":                      "does not verify",
		"postgres://broker@localhost/x?sslmode=verify-ca":            "does not verify",
		"postgres://broker@db/x?sslmode=verify-full&sslmode=disable": "more than once",
		"postgres://broker@db/x?target_session_attrs=any":            "target_session_attrs=any",
		"postgres://broker@db/x?service=y":                           `unknown parameter "service"`,
		"postgres://broker@db/x?options=-c%20fsync%3Doff":            `unknown parameter "options"`,
		"postgres://broker@db/x?pool_max_conns=1":                    `unknown parameter "pool_max_conns"`,
		"postgres://broker@db/x?sslcert=/cert":                       "only one of",
		"postgres://broker@db/x?sslrootcert=ca.pem":                  "sslrootcert is no absolute path",
		"postgres://broker@db/x?passfile=~/.pgpass":                  "passfile is no absolute path",
		"postgres://broker@db/x?%zz":                                 "malformed",
	}
	for text, want := range tests {
		_, err := parseURL(text)
		if !failure.Is(err, failure.Invalid) || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, not %q", text, err, want)
		}
		if err != nil && strings.Contains(err.Error()+failure.From(err).Hint, "CRET") {
			t.Errorf("the failure shows the password: %v", err)
		}
	}
}

// FuzzParseURL verifies that a URL that is taken names a role, a database and hosts, and TLS unless all are local.
func FuzzParseURL(f *testing.F) {
	for _, text := range []string{"postgres://broker@db:5433,[::1]/x?sslmode=verify-full", "postgres://a@/b?host=/c"} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		a, err := parseURL(text)
		if err != nil {
			return
		}
		if a.user == "" || a.database == "" || len(a.hosts) == 0 || len(a.hosts) > maxHosts {
			t.Errorf("%q: %+v", text, a)
		}
		for _, h := range a.hosts {
			if h.port == 0 || a.plain && !h.local() {
				t.Errorf("%q: %+v", text, a)
			}
		}
	})
}
