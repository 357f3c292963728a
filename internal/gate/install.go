package gate

import (
	"context"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/google/renameio/v2"
	"github.com/notaryproject/notation-go/verifier/trustpolicy"

	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/sandbox"
)

// verifierName is what containerd calls the gate in its messages.
const verifierName = "hsm-image-verifier"

// verifierCommand is the command of hsm-image that answers containerd.
const verifierCommand = "containerd-verifier"

// shortestTimeout is the shortest wait for an image that can be installed: with less, hardly a registry ever answers in
// time.
const shortestTimeout = time.Second

// Installed says what Install has done. All paths are absolute.
type Installed struct {
	Path   string   // the verifier
	Log    string   // of decisions
	Config string   // what containerd's configuration needs, as TOML
	Others []string // the names of other files in the folder, which containerd runs as well
	User   string   // whom the verifier runs as; "" is who has installed it
	Root   bool     // it runs as root
	Skip   []string // the statements of the trust policy that skip verification

	AnySigner []string // those that accept a signature by any signer
}

// Install writes the program that containerd starts into its folder of image verifiers. It is a shell script of a few
// lines with all settings in it: containerd runs each file in that folder, so there may be no second one, and it hands
// on no settings. An operator can read what it does, and program is updated without touching it. Files and folders that
// others can change are refused: they could switch the gate off. A trust policy that lets images pass unverified is
// refused as well, unless AllowSkip is set.
func (n Node) Install(binDir, program string) (*Installed, error) {
	if n.Timeout < shortestTimeout {
		return nil, failure.New(failure.Invalid, "the timeout is %s, and has to be %s or more", n.Timeout, shortestTimeout).
			WithHint("leave --timeout out, or name a longer one")
	}
	for _, path := range []*string{&binDir, &program, &n.TrustDir, &n.StateDir, &n.HostsDir, &n.AuthFile} {
		if *path == "" {
			continue
		}
		absolute, err := filepath.Abs(*path)
		if err != nil {
			return nil, failure.New(failure.Internal, "can't tell where %s is: %w", *path, err).
				WithHint("name it by its whole path")
		}
		*path = absolute
	}
	for path, mode := range map[string]os.FileMode{binDir: 0o755, n.StateDir: 0o700} {
		if err := os.MkdirAll(path, mode); err != nil {
			return nil, failure.New(failure.Internal, "can't make the folder %s: %w", path, err).WithHint("run it as root")
		}
	}
	if err := checkTrees([]string{binDir}); err != nil {
		return nil, err
	}
	if _, err := user.Lookup(DefaultUser); n.User == "" && os.Geteuid() == 0 && err == nil {
		n.User = DefaultUser
	}
	runsAs, err := n.user()
	if err != nil {
		return nil, err
	}
	if err := n.CheckFiles(program, runsAs.ID); err != nil {
		return nil, err
	}
	n.CacheDir = filepath.Join(n.StateDir, "cache")
	g, err := Open(n.Options) // what can't work is told now, not at the first pull
	if err != nil {
		return nil, err
	}
	g.Close()
	skip, anySigner, err := g.unverified()
	if err != nil {
		return nil, err
	}
	if len(skip) > 0 && !n.AllowSkip {
		return nil, failure.New(failure.Denied,
			"the trust policy in %s skips verification in its statements %s", n.TrustDir, strings.Join(skip, ", ")).
			WithHint("sign the images that these statements are for, or let them pass with --allow-skip")
	}
	if err := n.giveAway(runsAs); err != nil {
		return nil, err
	}
	if err := n.rehearse(program); err != nil {
		return nil, err
	}
	// The temporary file is beside the folder, not in it: containerd would run it.
	path := filepath.Join(binDir, verifierName)
	if err := renameio.WriteFile(path, n.script(program), 0o755, renameio.WithTempDir(filepath.Dir(binDir)),
		renameio.IgnoreUmask()); err != nil {
		return nil, failure.New(failure.Internal, "can't write %s: %w", path, err).
			WithHint("run it as root; the folder has to be on the file system of the one above it")
	}
	done := &Installed{Path: path, Log: n.LogFile(), Config: n.snippet(binDir), Root: runsAs.ID == 0, User: n.User,
		Skip: skip, AnySigner: anySigner}
	entries, err := os.ReadDir(binDir)
	if err != nil {
		return nil, failure.New(failure.Internal, "can't look for other verifiers: %w", err).WithHint("run it as root")
	}
	for _, entry := range entries {
		if entry.Name() != verifierName {
			done.Others = append(done.Others, entry.Name())
		}
	}
	return done, nil
}

// unverified lists the statements of the trust policy that skip verification, and those that accept a signature by any
// signer, as they do not enforce authenticity.
func (g *Gate) unverified() (skip, anySigner []string, err error) {
	for _, statement := range g.policy.TrustPolicies {
		level, err := statement.SignatureVerification.GetVerificationLevel()
		if err != nil {
			return nil, nil, failure.New(failure.Invalid, "can't use statement %q of the trust policy: %w", statement.Name, err).
				WithHint("correct the trust policy")
		}
		switch {
		case level.Name == trustpolicy.LevelSkip.Name:
			skip = append(skip, strconv.Quote(statement.Name))
		case level.Enforcement[trustpolicy.TypeAuthenticity] != trustpolicy.ActionEnforce:
			anySigner = append(anySigner, strconv.Quote(statement.Name))
		}
	}
	return skip, anySigner, nil
}

// giveAway makes the state directory with all that is in it a user's. Only what is root's is given away, which nobody
// else can have put there, and only what the verifier has made.
func (n Node) giveAway(user sandbox.User) error {
	if user.ID == os.Geteuid() {
		return nil
	}
	failed := func(err error) error {
		return failure.New(failure.Internal, "cannot give the folder %s to the verifier's user: %w", n.StateDir, err).
			WithHint("run it as root")
	}
	info, err := os.Stat(n.StateDir)
	if err != nil {
		return failed(err)
	}
	if stat, ok := info.Sys().(*syscall.Stat_t); ok && int(stat.Uid) == user.ID {
		return nil // it is theirs already, and so is what they have made in it
	}
	entries, err := os.ReadDir(n.StateDir)
	if err != nil {
		return failed(err)
	}
	for _, entry := range entries {
		if name := entry.Name(); name != filepath.Base(n.CacheDir) && !strings.HasPrefix(name, filepath.Base(n.LogFile())) {
			return failure.New(failure.Invalid,
				"cannot give the folder %s to the verifier's user: %s in it is not the verifier's", n.StateDir, name).
				WithHint("name a folder of the verifier's own with --state-dir")
		}
	}
	if err := filepath.WalkDir(n.StateDir, func(path string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		return os.Lchown(path, user.ID, user.Group) //nolint:gosec // nobody else can change this folder, as CheckFiles has seen
	}); err != nil {
		return failed(err)
	}
	return nil
}

// rehearse has the verifier confine itself as it will for containerd, and look whether it can then use all that it
// needs.
func (n Node) rehearse(program string) error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	said, err := exec.CommandContext(ctx, program,
		append([]string{verifierCommand, "--check"}, n.arguments()...)...).CombinedOutput()
	if err == nil {
		return nil
	}
	f := failure.New(failure.Invalid, "the verifier cannot run: %w", err).
		WithHint("run install-verifier with the program that the node has")
	for line := range strings.Lines(string(said)) {
		if text, ok := strings.CutPrefix(line, "error: "); ok {
			f.What = "the verifier cannot run: " + strings.TrimSpace(text)
		}
		if text, ok := strings.CutPrefix(line, "hint: "); ok {
			f.Hint = strings.TrimSpace(text)
		}
	}
	return f
}

// arguments tell the verifier the node's settings.
func (n Node) arguments() []string {
	arguments := []string{"--trust-dir=" + n.TrustDir, "--state-dir=" + n.StateDir, "--timeout=" + n.Timeout.String()}
	for flag, value := range map[string]string{"--hosts-dir=": n.HostsDir, "--auth-file=": n.AuthFile, "--user=": n.User} {
		if value != "" {
			arguments = append(arguments, flag+value)
		}
	}
	if n.AllowSkip {
		arguments = append(arguments, "--allow-skip")
	}
	for _, name := range n.VerificationPlugins {
		arguments = append(arguments, "--verification-plugin="+name)
	}
	slices.Sort(arguments)
	return arguments
}

func (n Node) script(program string) []byte {
	arguments := n.arguments()
	for i, a := range arguments {
		arguments[i] = quote(a)
	}
	return fmt.Appendf(nil, `#!/bin/sh
# Written by 'hsm-image install-verifier'. containerd runs this before it pulls an image, and pulls only if it ends with 0.
program=%s
[ -x "$program" ] || { printf '%%s\n' "$program is gone: no image can be verified"; exit 1; }
exec "$program" %s %s -- "$@"
`, quote(program), verifierCommand, strings.Join(arguments, " "))
}

func quote(text string) string { return "'" + strings.ReplaceAll(text, "'", `'\''`) + "'" }

// snippet is what containerd's configuration needs to ask the verifiers in a folder: all of them, as it lets pass what
// it has not asked about, and for longer than this one takes.
func (n Node) snippet(binDir string) string {
	return fmt.Sprintf(`[plugins.'io.containerd.image-verifier.v1.bindir']
  bin_dir = %q
  max_verifiers = -1
  per_verifier_timeout = %q
`, binDir, (n.Timeout + 2*time.Second).String())
}
