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

// verifierName is the file name of the verifier, by which containerd calls it in messages.
const verifierName = "hsm-image-verifier"

// verifierCommand is the command of hsm-image that answers containerd.
const verifierCommand = "containerd-verifier"

// shortestTimeout is the shortest timeout that can be installed. With less, hardly any registry would answer in time.
const shortestTimeout = time.Second

// Installation is what Install has done. All paths are absolute.
type Installation struct {
	Path   string   // the verifier
	Log    string   // the decision log
	Config string   // the settings that containerd needs, in TOML
	Others []string // names of other files in the folder, which containerd runs as well
	User   string   // the user that the verifier runs as; "" is the current one
	Root   bool     // the verifier runs as root
	Skip   []string // statements of the trust policy that skip verification

	AnySigner []string // statements of the trust policy that accept signatures by any signer
}

// Install writes the verifier into containerd's folder of image verifiers and returns what it did. The verifier is a
// shell script that contains all settings: containerd runs every file in the folder and passes no settings, operators
// can read the script, and program can be updated without a change of it.
//
// Install fails when others can change files that decide (CheckFiles), when the trust policy skips verification and
// AllowSkip is not set, and when the verifier cannot read what it needs.
func (n Node) Install(binDir, program string) (*Installation, error) {
	if n.Timeout < shortestTimeout {
		return nil, failure.New(failure.Invalid, "the timeout is %s, and has to be %s or more", n.Timeout, shortestTimeout).
			WithHint("leave --timeout out, or set a longer one")
	}
	for _, path := range []*string{&binDir, &program, &n.TrustDir, &n.StateDir, &n.HostsDir, &n.AuthFile} {
		if err := makeAbsolute(path); err != nil {
			return nil, err
		}
	}
	for path, mode := range map[string]os.FileMode{binDir: 0o755, n.StateDir: 0o700} {
		if err := os.MkdirAll(path, mode); err != nil {
			return nil, failure.New(fileKind(err), "cannot make the folder %s: %w", path, err).WithHint("run it as root")
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
	skip, anySigner, err := n.checkPolicy()
	if err != nil {
		return nil, err
	}
	if err := n.chownState(runsAs); err != nil {
		return nil, err
	}
	if err := n.checkVerifier(program); err != nil {
		return nil, err
	}
	path := filepath.Join(binDir, verifierName)
	if err := n.writeScript(path, program); err != nil {
		return nil, err
	}
	others, err := otherFiles(binDir)
	if err != nil {
		return nil, err
	}
	return &Installation{Path: path, Log: n.LogFile(), Config: n.containerdConfig(binDir), Others: others, User: n.User,
		Root: runsAs.ID == 0, Skip: skip, AnySigner: anySigner}, nil
}

// checkPolicy opens the trust policy, and returns the statements that skip verification and those that accept any
// signer. It fails for the former unless AllowSkip is set.
func (n Node) checkPolicy() (skip, anySigner []string, err error) {
	g, err := Open(n.Options)
	if err != nil {
		return nil, nil, err
	}
	g.Close()
	skip, anySigner, err = g.unverified()
	if err != nil {
		return nil, nil, err
	}
	if len(skip) > 0 && !n.AllowSkip {
		return nil, nil, failure.New(failure.Denied,
			"the trust policy in %s skips verification in its statements %s", n.TrustDir, strings.Join(skip, ", ")).
			WithHint("sign the images that these statements are for, or let them pass with --allow-skip")
	}
	return skip, anySigner, nil
}

// unverified lists the statements of the trust policy that skip verification, and those that accept signatures by any
// signer since they do not enforce authenticity.
func (g *Gate) unverified() (skip, anySigner []string, err error) {
	for _, statement := range g.policy.TrustPolicies {
		level, err := statement.SignatureVerification.GetVerificationLevel()
		if err != nil {
			return nil, nil, failure.New(failure.Invalid, "cannot use statement %q of the trust policy: %w",
				statement.Name, err).WithHint("correct the trust policy")
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

// chownState gives the state directory and the verifier's files in it to the user. It leaves a directory alone that is
// the user's already, and fails when root's directory contains other files, which may have been meant to stay root's.
func (n Node) chownState(user sandbox.User) error {
	if user.ID == os.Geteuid() {
		return nil
	}
	fail := func(err error) error {
		return failure.New(fileKind(err), "cannot give the folder %s to the verifier's user: %w", n.StateDir, err).
			WithHint("run it as root")
	}
	info, err := os.Stat(n.StateDir)
	if err != nil {
		return fail(err)
	}
	if stat, ok := info.Sys().(*syscall.Stat_t); ok && int(stat.Uid) == user.ID {
		return nil
	}
	entries, err := os.ReadDir(n.StateDir)
	if err != nil {
		return fail(err)
	}
	for _, entry := range entries {
		if name := entry.Name(); name != filepath.Base(n.CacheDir) && name != filepath.Base(n.tagsDir()) &&
			!strings.HasPrefix(name, filepath.Base(n.LogFile())) {
			return failure.New(failure.Invalid,
				"cannot give the folder %s to the verifier's user: %s in it is not the verifier's", n.StateDir, name).
				WithHint("name a folder for the verifier alone with --state-dir")
		}
	}
	if err := filepath.WalkDir(n.StateDir, func(path string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		return os.Lchown(path, user.ID, user.Group) //nolint:gosec // nobody else can change it: CheckFiles has verified that
	}); err != nil {
		return fail(err)
	}
	return nil
}

// checkVerifier runs the verifier with --check: it confines itself as it will for containerd, and checks that it can
// still use what it needs. The error has the message and the hint of the verifier.
func (n Node) checkVerifier(program string) error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	output, err := exec.CommandContext(ctx, program,
		append([]string{verifierCommand, "--check"}, n.arguments()...)...).CombinedOutput()
	if err == nil {
		return nil
	}
	f := failure.New(failure.Invalid, "the verifier cannot run: %w", err).
		WithHint("run install-verifier with the program that the node has")
	for line := range strings.Lines(string(output)) {
		if text, ok := strings.CutPrefix(line, "error: "); ok {
			f.What = "the verifier cannot run: " + strings.TrimSpace(text)
		}
		if text, ok := strings.CutPrefix(line, "hint: "); ok {
			f.Hint = strings.TrimSpace(text)
		}
	}
	return f
}

// arguments returns the flags with the node's settings.
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

// writeScript writes the verifier. The temporary file is in the folder above, since containerd would run it.
func (n Node) writeScript(path, program string) error {
	if err := renameio.WriteFile(path, n.script(program), 0o755, renameio.WithTempDir(filepath.Dir(filepath.Dir(path))),
		renameio.IgnoreUmask()); err != nil {
		return failure.New(fileKind(err), "cannot write %s: %w", path, err).
			WithHint("run it as root, with a folder on the file system of the one above it")
	}
	return nil
}

// script returns the verifier, a shell script.
func (n Node) script(program string) []byte {
	arguments := n.arguments()
	for i, a := range arguments {
		arguments[i] = shellQuote(a)
	}
	return fmt.Appendf(nil, `#!/bin/sh
# Written by 'hsm-image install-verifier'. containerd runs this before it pulls an image, and pulls only if it exits
# with 0.
program=%s
[ -x "$program" ] || { printf '%%s\n' "$program is gone: no image can be verified"; exit 1; }
exec "$program" %s %s -- "$@"
`, shellQuote(program), verifierCommand, strings.Join(arguments, " "))
}

// shellQuote returns text as one word of a shell.
func shellQuote(text string) string { return "'" + strings.ReplaceAll(text, "'", `'\''`) + "'" }

// otherFiles returns the names of other files than the verifier in a folder.
func otherFiles(folder string) (names []string, err error) {
	entries, err := os.ReadDir(folder)
	if err != nil {
		return nil, failure.New(fileKind(err), "cannot read the folder %s: %w", folder, err).WithHint("run it as root")
	}
	for _, entry := range entries {
		if entry.Name() != verifierName {
			names = append(names, entry.Name())
		}
	}
	return names, nil
}

// containerdConfig returns the settings with which containerd runs all verifiers in a folder. With a maximum,
// containerd would pass over those beyond it; its timeout has to be longer than the verifier's.
func (n Node) containerdConfig(binDir string) string {
	return fmt.Sprintf(`[plugins.'io.containerd.image-verifier.v1.bindir']
  bin_dir = %q
  max_verifiers = -1
  per_verifier_timeout = %q
`, binDir, (n.Timeout + 2*time.Second).String())
}
