package approvals

import (
	"context"
	"database/sql"
	"encoding/json"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	_ "modernc.org/sqlite" // the driver

	"github.com/notation-hsm/notation-hsm/internal/approval"
	"github.com/notation-hsm/notation-hsm/internal/brokerapi"
	"github.com/notation-hsm/notation-hsm/internal/store"
	"github.com/notation-hsm/notation-hsm/internal/store/sqlite"
	"github.com/notation-hsm/notation-hsm/internal/translog"
	softhsmtest "github.com/notation-hsm/notation-hsm/softhsm-test"
)

// editPolicy has a rule that needs two people, one with a time lock, and one with a limit; and a key that is blocked.
const editPolicy = `version: 1
people:
  alice: [{issuer: mtls, subject: "CN=alice"}]
  bob: [{issuer: mtls, subject: "CN=bob"}]
groups:
  signers: [alice, bob]
keys:
  release:
    key: pkcs11:token=prod;object=release
    formats: [notation]
    use:
    - name: both
      when: caller.claims.ref == "refs/heads/both"
      approvals: [{group: signers, quorum: 2, kinds: [key, ssh]}]
    - name: locked
      when: caller.claims.ref == "refs/heads/locked"
      approvals: [{group: signers, quorum: 1, kinds: [key, ssh]}]
      time-lock: 700h
      timeout: 2000h
    - name: rare
      when: caller.claims.ref == "refs/heads/rare"
      limit: 1 per day
    modify: [{when: caller.subject == "CN=operator"}]
  frozen:
    key: pkcs11:token=prod;object=frozen
    formats: [notation]
    use: [{name: frozen, when: caller.claims.ref == "refs/heads/frozen"}]
    block: [{when: caller.subject == "CN=operator"}]
    unblock: [{approvals: [{group: signers, quorum: 2}]}]
    modify: [{when: caller.subject == "CN=operator"}]
`

// edited is a broker that has stopped, and what somebody who edits its database wants it to sign.
type edited struct {
	*site
	lacking, full, locked string  // requests: one approval is lacking, none is, and a time lock runs
	mallory               *person // who can sign as bob by what was edited; nil for nobody
	approver, statement   string
	credentialID          string // of bob
	kept                  string // folder with the database and the checkpoint as the broker has left them
}

// TestEditedDatabase edits the database of a broker that is stopped, in ways that would have it sign what nobody has
// agreed to. After each it signs none of that, or does not start.
func TestEditedDatabase(t *testing.T) {
	softhsmtest.Parallel(t)
	s := start(t, options{policy: editPolicy, keys: []string{"frozen"}, people: []person{{name: "alice", kind: "ssh"},
		{name: "bob", kind: "memory"}}})
	e := &edited{site: s, kept: t.TempDir()}
	e.lacking, e.full = s.asks("refs/heads/both", "release", "lacking"), s.asks("refs/heads/both", "release", "full")
	e.locked = s.asks("refs/heads/locked", "release", "locked")
	for _, name := range []string{"alice", "bob"} {
		s.decide(name, e.full, approval.Approve)
	}
	s.decide("alice", e.lacking, approval.Approve)
	s.decide("alice", e.locked, approval.Approve)
	if refusal, signed := s.signature("refs/heads/rare", "release", "rare 1"); !signed {
		t.Fatal(refusal)
	}
	s.must("operator", http.MethodPost, brokerapi.KeyPath("frozen")+"/block", nil, nil)
	s.Stop()
	e.keep(t)

	for _, c := range e.edits() {
		e.restore(t)
		c.edit(t)
		if output, started := s.TryStart(); started {
			e.signsNothing(t, c.name)
			s.Stop()
		} else if !strings.Contains(output, "edited") && !strings.Contains(output, "cannot read the policy in force") {
			t.Errorf("after the edit %q, the broker does not start for another reason: %s", c.name, output)
		}
	}

	// What the broker has left is good: the request that lacks nothing is signed.
	e.restore(t)
	s.Start()
	e.signsNothing(t, "nothing")
	if refusal, signed := s.signature("refs/heads/both", "release", "full"); !signed {
		t.Errorf("a request that both have approved is not signed: %s", refusal)
	}
	s.decide("bob", e.lacking, approval.Approve)
	if refusal, signed := s.signature("refs/heads/both", "release", "lacking"); !signed {
		t.Errorf("a request that both have approved is not signed: %s", refusal)
	}
}

// signsNothing checks that the broker does not sign what nobody has allowed.
func (e *edited) signsNothing(t *testing.T, edit string) {
	t.Helper()
	if e.mallory != nil {
		if forged, err := e.mallory.signs(approval.Approve, e.approver, e.credentialID, e.statement); err != nil {
			t.Fatal(err)
		} else if status, answer := e.post("bob", e.lacking, forged); status < 400 {
			t.Errorf("after the edit %q, an approval with another key than that of the credential: %d %s", edit, status, answer)
		}
		e.mallory = nil
	}
	for ref, key := range map[string]string{"lacking": "release", "locked": "release", "rare": "release",
		"frozen": "frozen"} {
		branch := map[string]string{"lacking": "refs/heads/both"}[ref]
		if branch == "" {
			branch = "refs/heads/" + ref
		}
		if _, signed := e.signature(branch, key, ref); signed {
			t.Errorf("after the edit %q, the broker signs %q", edit, ref)
		}
	}
}

// keep keeps the database and the checkpoint.
func (e *edited) keep(t *testing.T) {
	t.Helper()
	if err := os.CopyFS(filepath.Join(e.kept, "store"), os.DirFS(filepath.Dir(e.Database()))); err != nil {
		t.Fatal(err)
	}
	softhsmtest.Write(t, filepath.Join(e.kept, "checkpoint"), softhsmtest.Read(t, e.Checkpoint()))
}

// restore puts back what keep has kept.
func (e *edited) restore(t *testing.T) {
	t.Helper()
	if err := os.RemoveAll(filepath.Dir(e.Database())); err != nil {
		t.Fatal(err)
	}
	if err := os.CopyFS(filepath.Dir(e.Database()), os.DirFS(filepath.Join(e.kept, "store"))); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(filepath.Dir(e.Database()), 0o700); err != nil {
		t.Fatal(err)
	}
	softhsmtest.Write(t, e.Checkpoint(), softhsmtest.Read(t, filepath.Join(e.kept, "checkpoint")))
}

// sql changes rows by hand. It fails when it changes none, for then it tests nothing.
func (e *edited) sql(t *testing.T, statement string, args ...any) {
	t.Helper()
	db, err := sql.Open("sqlite", e.Database())
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	result, err := db.ExecContext(t.Context(), statement, args...)
	if err != nil {
		t.Fatalf("%s: %v", statement, err)
	}
	if n, err := result.RowsAffected(); err != nil || n == 0 {
		t.Fatalf("%s: %d rows, %v", statement, n, err)
	}
}

// column returns a column of the rows that a query finds.
func (e *edited) column(t *testing.T, query string, args ...any) (all [][]byte) {
	t.Helper()
	db, err := sql.Open("sqlite", e.Database())
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	rows, err := db.QueryContext(t.Context(), query, args...)
	if err != nil {
		t.Fatal(err)
	}
	defer rows.Close()
	for rows.Next() {
		var one []byte
		if err := rows.Scan(&one); err != nil {
			t.Fatal(err)
		}
		all = append(all, one)
	}
	if err := rows.Err(); err != nil || len(all) == 0 {
		t.Fatalf("%s: no row, %v", query, err)
	}
	return all
}

// entry returns the entry of the log with a type and a request, and its index.
func (e *edited) entry(t *testing.T, kind, request string) (index int, text string) {
	t.Helper()
	for i, entry := range e.column(t, "SELECT entry FROM entries ORDER BY idx") {
		if strings.Contains(string(entry), `"type":"`+kind+`"`) && strings.Contains(string(entry), request) {
			return i, string(entry)
		}
	}
	t.Fatalf("no entry %s of %s", kind, request)
	return 0, ""
}

// add adds entries to the log with the hashes of its tree, as the broker would, but for the signature of a checkpoint.
func (e *edited) add(t *testing.T, documents [][]byte, entries ...string) {
	t.Helper()
	s, err := sqlite.Open(t.Context(), e.Database())
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	size, err := s.Size(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	tree, err := translog.NewTree(t.Context(), size, func(ctx context.Context, level int, index int64) ([]byte, error) {
		return s.Tile(ctx, level, index)
	})
	if err != nil {
		t.Fatal(err)
	}
	batch := &store.Batch{First: size, Documents: documents}
	for _, entry := range entries {
		batch.Entries = append(batch.Entries, []byte(entry))
	}
	_, changed := tree.Append(batch.Entries)
	for _, tile := range changed {
		batch.Tiles = append(batch.Tiles, store.Tile(tile))
	}
	if err := s.Commit(t.Context(), batch); err != nil {
		t.Fatal(err)
	}
}

// field replaces the value of a field of an entry.
func field(t *testing.T, entry, name, value string) string {
	t.Helper()
	before, rest, found := strings.Cut(entry, `"`+name+`":"`)
	_, after, ended := strings.Cut(rest, `"`)
	if !found || !ended {
		t.Fatalf("no field %s in %s", name, entry)
	}
	return before + `"` + name + `":"` + value + `"` + after
}

// edit is one way to change the database.
type edit struct {
	name string
	edit func(t *testing.T)
}

func (e *edited) edits() []edit {
	return slices.Concat(e.rowEdits(), e.documentEdits(), e.entryEdits())
}

// rowEdits change what the broker shows to people.
func (e *edited) rowEdits() []edit {
	return []edit{
		{"states are approved", func(t *testing.T) {
			e.sql(t, `UPDATE requests SET state = 'approved', body = CAST(json_set(CAST(body AS TEXT), '$.request.state',
				'approved', '$.request.reason', '') AS BLOB)`)
			e.sql(t, `UPDATE requests SET body = CAST(json_remove(CAST(body AS TEXT), '$.people', '$.request.not_before')
				AS BLOB)`)
		}},
		{"the rows of approvals are copied", func(t *testing.T) {
			body := e.column(t, "SELECT body FROM requests WHERE id = ?", e.full)[0]
			e.sql(t, "UPDATE requests SET state = 'approved', body = ? WHERE id = ?",
				[]byte(strings.ReplaceAll(string(body), e.full, e.lacking)), e.lacking)
		}},
		{"times have passed", func(t *testing.T) {
			e.sql(t, "UPDATE requests SET created = created - 9999999999, changed = changed - 9999999999")
			e.sql(t, `UPDATE requests SET body = CAST(json_set(CAST(body AS TEXT), '$.request.created',
				'2020-01-01T00:00:00Z', '$.request.not_before', '2020-01-01T00:00:00Z') AS BLOB) WHERE id = ?`, e.locked)
		}},
		{"rows are gone", func(t *testing.T) { e.sql(t, "DELETE FROM requests WHERE rule = 'rare' OR key = 'frozen'") }},
	}
}

// documentEdits change documents that the log names by their SHA-256.
func (e *edited) documentEdits() []edit {
	replace := func(old, other string) func(t *testing.T) {
		return func(t *testing.T) {
			e.sql(t, `UPDATE documents SET data = CAST(replace(CAST(data AS TEXT), ?, ?) AS BLOB)
				WHERE instr(CAST(data AS TEXT), ?)`, old, other, old)
		}
	}
	return []edit{
		{"the policy has a lower quorum", replace("quorum: 2", "quorum: 1")},
		{"rules have a lower quorum", replace(`"quorum":2`, `"quorum":1`)},
		{"statements name the other artifact", replace(strings.TrimPrefix(artifact("full").Digest, "sha256:"),
			strings.TrimPrefix(artifact("lacking").Digest, "sha256:"))},
		{"statements name the other request", replace(e.full, e.lacking)},
		{"the policy has no time lock", replace("time-lock: 700h", "time-lock: 1s  ")},
		{"envelopes are exchanged", func(t *testing.T) {
			_, mine := e.entry(t, "approved/v1", e.lacking)
			var event struct{ Approval string }
			if err := json.Unmarshal([]byte(mine), &event); err != nil {
				t.Fatal(err)
			}
			other := e.column(t, `SELECT data FROM documents WHERE instr(CAST(data AS TEXT), '"authenticator_data"') = 0
				AND instr(CAST(data AS TEXT), '{"approval":"') = 1`)
			for _, data := range other {
				e.sql(t, "UPDATE documents SET data = ? WHERE lower(hex(sha256)) = ?", data,
					strings.TrimPrefix(event.Approval, "sha256:"))
			}
		}},
		{"a credential has the key of somebody else", func(t *testing.T) {
			e.mallory = &person{name: "mallory", kind: "memory"} // who has the key of bob's credential
			e.mallory.make(t, t.TempDir())
			e.forge(t, e.mallory)
		}},
	}
}

// forge replaces the public key of bob by that of another person, and adds an approval of the request that lacks one,
// signed with that key, in an entry that no checkpoint covers.
func (e *edited) forge(t *testing.T, by *person) {
	t.Helper()
	bobs := e.last(t)
	var event struct{ Approver, Credential string }
	if err := json.Unmarshal([]byte(bobs), &event); err != nil {
		t.Fatal(err)
	}
	_, lacking := e.entry(t, "approved/v1", e.lacking)
	var other struct{ Statement string }
	if err := json.Unmarshal([]byte(lacking), &other); err != nil {
		t.Fatal(err)
	}
	hash := strings.TrimPrefix(event.Credential, "sha256:")
	credential, err := approval.DecodeCredential(e.column(t, "SELECT data FROM documents WHERE lower(hex(sha256)) = ?",
		hash)[0])
	if err != nil {
		t.Fatal(err)
	}
	credential.Public = by.public
	document, err := credential.Encode()
	if err != nil {
		t.Fatal(err)
	}
	e.sql(t, "UPDATE documents SET data = ? WHERE lower(hex(sha256)) = ?", document, hash)
	e.approver, e.credentialID, e.statement = event.Approver, event.Credential, other.Statement
	made, err := by.signs(approval.Approve, event.Approver, event.Credential, other.Statement)
	if err != nil {
		t.Fatal(err)
	}
	signed, err := made.Encode()
	if err != nil {
		t.Fatal(err)
	}
	entry := field(t, field(t, bobs, "request", e.lacking), "statement", other.Statement)
	e.add(t, [][]byte{signed}, field(t, entry, "approval", approval.Hash(signed)))
}

// entryEdits change the log.
func (e *edited) entryEdits() []edit {
	return []edit{
		{"an entry of an approval is of the other request", func(t *testing.T) {
			index, entry := e.entry(t, "approved/v1", e.full)
			e.sql(t, "UPDATE entries SET entry = ? WHERE idx = ?", []byte(strings.ReplaceAll(entry, e.full, e.lacking)), index)
		}},
		{"the entry of the block is gone", func(t *testing.T) {
			index, _ := e.entry(t, "blocked/v1", "")
			e.sql(t, "DELETE FROM entries WHERE idx = ?", index)
		}},
		{"the log ends before the block", func(t *testing.T) {
			index, _ := e.entry(t, "blocked/v1", "")
			e.sql(t, "DELETE FROM entries WHERE idx >= ?", index)
		}},
		{"times of entries have passed", func(t *testing.T) {
			e.sql(t, `UPDATE entries SET entry = CAST(replace(CAST(entry AS TEXT), '"time":"20', '"time":"19') AS BLOB)`)
		}},
		{"uses are gone", func(t *testing.T) {
			index, entry := e.entry(t, "intent/v1", "")
			e.sql(t, "UPDATE entries SET entry = ? WHERE idx = ?", []byte(field(t, entry, "rule", "both")), index)
		}},
		{"an approval is added to the log", func(t *testing.T) {
			e.addApproval(t)
		}},
		{"the end of a block is added to the log", func(t *testing.T) {
			_, entry := e.entry(t, "blocked/v1", "")
			e.add(t, nil, strings.Replace(entry, `"blocked/v1"`, `"unblocked/v1"`, 1))
		}},
		{"a policy is added to the log", func(t *testing.T) {
			text := softhsmtest.Read(t, filepath.Join(e.Dir, "policy.yaml"))
			next := []byte(strings.NewReplacer("quorum: 2", "quorum: 1", "time-lock: 700h", "").Replace(text))
			_, entry := e.entry(t, "blocked/v1", "")
			e.add(t, [][]byte{next}, `{"policy":"`+approval.Hash(next)+`","time":"`+timeOf(t, entry)+`","type":"policy/v1"}`)
		}},
		{"a state is added", func(t *testing.T) {
			e.sql(t, "INSERT OR REPLACE INTO snapshots (size, data) SELECT max(idx) + 1, ? FROM entries", []byte(`{"size":1}`))
		}},
	}
}

// addApproval adds the entry of an approval by bob for the request that lacks it, with the envelope of another request.
func (e *edited) addApproval(t *testing.T) {
	t.Helper()
	_, own := e.entry(t, "approved/v1", e.lacking)
	var event struct{ Statement string }
	if err := json.Unmarshal([]byte(own), &event); err != nil {
		t.Fatal(err)
	}
	e.add(t, nil, field(t, field(t, e.last(t), "request", e.lacking), "statement", event.Statement))
}

// last returns the entry of the last approval of the request that lacks none, which is bob's.
func (e *edited) last(t *testing.T) (text string) {
	t.Helper()
	for _, entry := range e.column(t, "SELECT entry FROM entries ORDER BY idx") {
		if strings.Contains(string(entry), `"type":"approved/v1"`) && strings.Contains(string(entry), e.full) {
			text = string(entry)
		}
	}
	return text
}

func timeOf(t *testing.T, entry string) string {
	t.Helper()
	var event struct{ Time string }
	if err := json.Unmarshal([]byte(entry), &event); err != nil {
		t.Fatal(err)
	}
	return event.Time
}
