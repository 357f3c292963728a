package chaos

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	softhsmtest "github.com/notation-hsm/notation-hsm/softhsm-test"
)

// edit is some text of a file of the broker in place of another one.
type edit struct{ file, right, mistaken string }

// skewed lets a run set the broker's clock, which no library can: Go asks the kernel itself.
var skewed = edit{"internal/broker/clock.go", "c.Wall = time.Now\n", "c.Wall = skewed\n"}

// mistakes are those that somebody could make in the broker. -chaos.mistake NAME plants one, which a run finds.
var mistakes = map[string][]edit{
	"a signature is released without its entry": {{"internal/broker/sign.go",
		"if logged != nil { // the signature is not released", "if logged != nil && w == nil {"}},
	"a replica goes on that was taken for dead": {
		{"internal/store/postgres/turn.go", "if !slices.Contains(t.head.Replicas, number) {",
			"if !slices.Contains(t.head.Replicas, number) && number < 0 {"},
		{"internal/broker/sign.go", "if now == nil || now.State != brokerapi.Signing || now.Intent != w.intent {",
			"if w == nil {"}},
	"a read is answered from memory": {
		{"internal/broker/view.go", "import (\n", "import (\n\t\"sync\"\n"},
		{"internal/broker/view.go", "// maxReads is", "var remembered sync.Map\n\n// maxReads is"},
		{"internal/broker/view.go", "kept, err := b.options.Store.Request(ctx, id)\n",
			`kept, err := b.options.Store.Request(ctx, id)
	if before, again := remembered.LoadOrStore(id, kept); again && err == nil {
		kept = before.(*store.Request)
	}
`}},
	"two replicas decide at once": {{"internal/store/postgres/turn.go",
		"SELECT size, seal, version FROM head FOR UPDATE", "SELECT size, seal, version FROM head"}},
	"a commit does not wait for the standby": {{"internal/store/postgres/turn.go",
		"ELSE current_setting('synchronous_commit') END", "ELSE 'local' END"}},
	"a token is used twice": {{"internal/broker/decide.go",
		"len(used.Triples) >= c.Token.Uses", "len(used.Triples) > c.Token.Uses"}},
	"a withdrawal takes nothing back": {{"internal/broker/voters.go",
		"func(v vote) bool { return v.Person == e.Approver })", "func(v vote) bool { return false })"}},
}

// build builds hsm-broker with a clock that a run sets, and a mistake if one is named. The sources stay as they are.
func (w *world) build(mistake string) string {
	w.t.Helper()
	edits := []edit{skewed}
	if mistake != "" {
		if mistakes[mistake] == nil {
			w.t.Fatalf("no mistake is named %q", mistake)
		}
		edits = append(edits, mistakes[mistake]...)
	}
	added := filepath.Join(softhsmtest.Root(), "internal", "broker", "skewed_clock.go")
	replace := map[string]string{
		added: filepath.Join(softhsmtest.Root(), "softhsm-test", "chaos", "testdata", "skewed_clock.go")}
	texts := map[string]string{}
	for _, e := range edits {
		if _, read := texts[e.file]; !read {
			data, err := os.ReadFile(filepath.Join(softhsmtest.Root(), e.file))
			w.must(err)
			texts[e.file] = string(data)
		}
		if n := strings.Count(texts[e.file], e.right); n != 1 {
			w.t.Fatalf("%s has the text %d times: %s", e.file, n, e.right)
		}
		texts[e.file] = strings.Replace(texts[e.file], e.right, e.mistaken, 1)
	}
	for file, text := range texts {
		replace[filepath.Join(softhsmtest.Root(), file)] = w.file(filepath.Join("edited", file), text)
	}
	data, err := json.Marshal(map[string]any{"Replace": replace})
	w.must(err)
	program := filepath.Join(w.dir, "hsm-broker")
	build := softhsmtest.Go(softhsmtest.Root(), "build", "-overlay", w.file("overlay.json", string(data)),
		"-tags", softhsmtest.Tags, "-o", program, "./cmd/hsm-broker")
	if output, err := build.CombinedOutput(); err != nil {
		w.t.Fatalf("building hsm-broker: %v\n%s", err, output)
	}
	return program
}

// TestMistakes holds that the mistakes still fit the code.
func TestMistakes(t *testing.T) {
	for name, edits := range mistakes {
		for _, e := range append(edits, skewed) {
			if n := strings.Count(softhsmtest.Read(t, filepath.Join(softhsmtest.Root(), e.file)), e.right); n != 1 {
				t.Errorf("%s: %s has the text %d times: %s", name, e.file, n, e.right)
			}
		}
	}
}
