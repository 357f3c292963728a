package team

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	softhsmtest "github.com/notation-hsm/notation-hsm/softhsm-test"
	"github.com/notation-hsm/notation-hsm/softhsm-test/oci"
)

// deployed returns the content of a file of deploy/tags.
func deployed(t testing.TB, name string) string {
	t.Helper()
	return softhsmtest.Read(t, filepath.Join(softhsmtest.Root(), "deploy", "tags", name))
}

// installedImage is where the deployed files expect hsm-image.
const installedImage = "/usr/local/bin/hsm-image"

// TestTagUnits has systemd check the units of deploy/tags.
func TestTagUnits(t *testing.T) {
	softhsmtest.Parallel(t)
	dir := t.TempDir()
	var files []string
	for _, name := range []string{"hsm-tags.service", "hsm-tags.timer"} {
		text := deployed(t, name)
		installed := strings.ReplaceAll(text, installedImage, softhsmtest.Build(t, "hsm-image"))
		if strings.HasSuffix(name, ".service") && installed == text {
			t.Error("the service starts another program")
		}
		files = append(files, filepath.Join(dir, name))
		softhsmtest.Write(t, files[len(files)-1], installed)
	}
	stdout, stderr, err := softhsmtest.Try(t, "", softhsmtest.Program(t, "systemd-analyze"),
		append([]string{"verify", "--man=no"}, files...)...)
	if err != nil || stdout+stderr != "" {
		t.Errorf("%v\n%s%s", err, stdout, stderr)
	}
}

// unitCommand returns the command of hsm-tags.service as systemd runs it, and its environment.
func unitCommand(t *testing.T) (args []string, variables map[string]string) {
	t.Helper()
	variables = map[string]string{}
	for line := range strings.SplitSeq(deployed(t, "hsm-tags.env"), "\n") {
		if name, value, found := strings.Cut(line, "="); found && !strings.HasPrefix(line, "#") {
			variables[name] = value
		}
	}
	for line := range strings.SplitSeq(deployed(t, "hsm-tags.service"), "\n") {
		if words, found := strings.CutPrefix(line, "ExecStart="+installedImage+" "); found {
			args = strings.Fields(words)
		}
		if setting, found := strings.CutPrefix(line, "Environment="); found {
			name, value, _ := strings.Cut(setting, "=")
			variables[name] = value
		}
	}
	variables["CREDENTIALS_DIRECTORY"] = "/run/credentials/hsm-tags.service"
	return args, variables
}

// podCommand returns the command of the CronJob, and its environment.
func podCommand(t *testing.T) (args []string, variables map[string]string) {
	t.Helper()
	variables = map[string]string{"TOKEN_PIN": softhsmtest.PIN}
	for _, document := range softhsmtest.Documents(t, filepath.Join(softhsmtest.Root(), "deploy", "tags", "kubernetes",
		"cronjob.yaml")) {
		if document["kind"] != "CronJob" {
			continue
		}
		var node any = document
		for _, name := range []string{"spec", "jobTemplate", "spec", "template", "spec", "containers"} {
			node = node.(map[string]any)[name]
		}
		container := node.([]any)[0].(map[string]any)
		for _, arg := range container["args"].([]any) {
			args = append(args, arg.(string))
		}
		for _, one := range container["env"].([]any) {
			if value, ok := one.(map[string]any)["value"].(string); ok {
				variables[one.(map[string]any)["name"].(string)] = value
			}
		}
	}
	return args, variables
}

// TestTagDeployments runs the commands of the timer's service and of the CronJob with a token, files and a registry of
// the test. They publish what is proposed.
func TestTagDeployments(t *testing.T) {
	for name, command := range map[string]func(*testing.T) ([]string, map[string]string){"timer": unitCommand,
		"CronJob": podCommand} {
		t.Run(name, func(t *testing.T) {
			softhsmtest.Parallel(t)
			token := softhsmtest.NewToken(t, "online")
			n := softhsmtest.NewNotation(t, token)
			dir := t.TempDir()
			s := &tagged{team: &team{t: t}, program: softhsmtest.Build(t, "hsm-image"),
				manifest: filepath.Join(dir, "trust.yaml"), repository: oci.StartRegistry(t) + "/team/app"}
			key := func(label string) string { return "pkcs11:token=online;object=" + label }
			for _, label := range []string{"root", "targets", "snapshot", "timestamp"} {
				softhsmtest.Run(t, n.Plugin, "key", "generate", "--token", "online", "--spec", "EC-256", "--label", label)
			}
			s.run(t, "init", s.repository, "--root", key("root"), "--targets", key("targets"), "--snapshot", key("snapshot"),
				"--timestamp", key("timestamp"), "--to", filepath.Join(dir, "root.json"))
			digest := s.push("v1")
			s.run(t, "sign", s.repository+":v1", "--key", key("targets"), "--wait", "0")

			state := filepath.Join(dir, "state")
			if err := os.Mkdir(state, 0o770); err != nil {
				t.Fatal(err)
			}
			for name, text := range map[string]string{"registry": "{}", "pin": softhsmtest.PIN} {
				if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			placed := strings.NewReplacer("/etc/hsm-tags-registry/.dockerconfigjson", filepath.Join(dir, "registry"),
				"/run/credentials/hsm-tags.service", dir, "/etc/hsm-tags", dir, "/var/lib/hsm-tags", state,
				"registry.example.com/team/app", s.repository, "/usr/lib/softhsm/libsofthsm2.so", token.Module,
				"/usr/lib/module.so", token.Module)
			args, variables := command(t)
			for name, value := range variables {
				softhsmtest.Setenv(t, name, placed.Replace(value))
			}
			for _, name := range []string{"NOTATION_HSM_PIN", "NOTATION_HSM_TOKEN"} {
				softhsmtest.Setenv(t, name, "")
			}
			for i, arg := range args {
				args[i] = placed.Replace(os.Expand(arg, func(name string) string { return variables[name] }))
			}
			if at := slices.Index(args, "refresh"); at != 1 || !strings.Contains(strings.Join(args, " "), s.repository) {
				t.Fatalf("the command is %q", args)
			}
			output := softhsmtest.Run(t, s.program, append(args, "--plain-http")...)
			if !strings.Contains(output, "published version 2 with 1 proposals") {
				t.Errorf("it has printed\n%s", output)
			}
			s.shows("v1", digest)
			remembered := filepath.Join(state, "notation-hsm", "state", "tags", "*", "timestamp.json")
			if found, err := filepath.Glob(remembered); err != nil || len(found) != 1 {
				t.Errorf("it remembers %q, %v", found, err)
			}
		})
	}
}
