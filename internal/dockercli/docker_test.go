package dockercli

import (
	"context"
	"errors"
	"path/filepath"
	"strings"
	"testing"

	"github.com/notation-hsm/notation-hsm/internal/failure"
	softhsmtest "github.com/notation-hsm/notation-hsm/softhsm-test"
)

const (
	digest = "sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"
	app    = "registry.example.com/app"
)

// verified has every image pass.
func verified(context.Context, string) (string, error) { return app + "@" + digest, nil }

// refused has no image pass.
func refused(context.Context, string) (string, error) {
	return "", failure.New(failure.Denied, "no valid trust data for it")
}

// recorder is a docker that writes each of its calls as a line into a file, and ends with an exit code.
func recorder(t *testing.T, code string) (docker Docker, calls func() string) {
	t.Helper()
	log := filepath.Join(t.TempDir(), "calls")
	softhsmtest.Write(t, log, "")
	return shell("echo \"$*\" >> '"+log+"'; exit "+code, "--context=build"),
		func() string { return softhsmtest.Read(t, log) }
}

// shell is a docker that is a script, with docker's own options.
func shell(script string, options ...string) Docker {
	return Docker{program: "/bin/sh", options: append([]string{"-c", script, "docker"}, options...)}
}

// TestPull pulls by digest and then tags, unless the image was named by its digest.
func TestPull(t *testing.T) {
	t.Parallel()
	pull, tagged := "--context=build pull ", "PIN\n--context=build tag PIN "
	for line, want := range map[string]string{
		app + ":v1":                           pull + tagged + app + ":v1\n",
		app:                                   pull + tagged + app + ":latest\n",
		"alpine:3":                            pull + "PIN\n--context=build tag PIN docker.io/library/alpine:3\n",
		app + "@" + digest:                    pull + "PIN\n",
		app + ":v1@" + digest:                 pull + "PIN\n",
		"-q " + app + " --platform linux/arm": pull + "--quiet=true --platform=linux/arm " + tagged + app + ":latest\n",
		"-- " + app:                           pull + tagged + app + ":latest\n",
	} {
		docker, calls := recorder(t, "0")
		call, err := ReadPull(strings.Fields(line))
		if err != nil {
			t.Errorf("%s: %v", line, err)
			continue
		}
		err = docker.Pull(t.Context(), call, verified)
		if got := strings.ReplaceAll(calls(), app+"@"+digest, "PIN"); err != nil || got != want {
			t.Errorf("%s: %v: %s", line, err, got)
		}
	}
	for line, want := range map[string]string{
		"":                   "docker pull needs an image",
		"-q":                 "docker pull needs an image",
		"-a " + app:          "cannot pull all tags",
		app + " --all-tags":  "cannot pull all tags",
		app + " " + app:      "docker pull takes one image, and there are 2",
		"-- " + app + " -q":  "docker pull takes one image, and there are 2",
		app + " --new":       "unknown option --new of docker pull",
		"--platform":         "option --platform of docker pull needs a value",
		"--platform " + app:  "docker pull needs an image",
		"--disable-content-": "unknown option --disable-content- of docker pull",
	} {
		if call, err := ReadPull(strings.Fields(line)); err == nil || err.Error() != want {
			t.Errorf("%s: %+v, %v", line, call, err)
		}
	}
	if call, err := ReadPull([]string{"--help"}); err != nil || !call.Help {
		t.Errorf("%+v %v", call, err)
	}
}

// TestRefused runs nothing for an image that is refused, or whose name is none.
func TestRefused(t *testing.T) {
	t.Parallel()
	docker, calls := recorder(t, "0")
	pull, err := ReadPull([]string{app})
	if err != nil {
		t.Fatal(err)
	}
	run, err := ReadRun([]string{"-it", app, "sh"})
	if err != nil {
		t.Fatal(err)
	}
	for _, err := range []error{docker.Pull(t.Context(), pull, refused), docker.Run(t.Context(), run, refused),
		docker.Pull(t.Context(), Call{Image: "Not A Name"}, verified)} {
		if err == nil {
			t.Error("it passed")
		}
	}
	if calls() != "" {
		t.Errorf("docker was called: %s", calls())
	}
}

// TestRun runs the image by its digest, and nothing else is changed.
func TestRun(t *testing.T) {
	t.Parallel()
	docker, calls := recorder(t, "7")
	call, err := ReadRun(strings.Fields("--rm -e " + app + ":v1 " + app + ":v2 sh -c " + app))
	if err != nil || call.Image != app+":v2" {
		t.Fatalf("%+v %v", call, err)
	}
	var exit *ExitError
	if err := docker.Run(t.Context(), call, verified); !errors.As(err, &exit) || exit.Code != 7 {
		t.Errorf("%v", err)
	}
	want := "--context=build run --rm=true --env=" + app + ":v1 " + app + "@" + digest + " sh -c " + app + "\n"
	if calls() != want {
		t.Errorf("%s, want %s", calls(), want)
	}
	// A pull that failed is not followed by a tag.
	if call, err = ReadPull([]string{app}); err != nil {
		t.Fatal(err)
	}
	if err := docker.Pull(t.Context(), call, verified); !errors.As(err, &exit) || strings.Count(calls(), "\n") != 2 {
		t.Errorf("%v: %s", err, calls())
	}
	docker.program = "/nowhere/docker"
	if err := docker.Run(t.Context(), call, verified); !failure.Is(err, failure.NotFound) {
		t.Errorf("%v", err)
	}
	for _, args := range [][]string{{}, {"--rm"}, {"--name", app}, {"--new", app},
		{"--mount", "type=image,source=alpine,target=/a", app}, {"--mount=source=alpine,Type=Image,target=/a", app}} {
		if call, err := ReadRun(args); err == nil {
			t.Errorf("%v: %+v", args, call)
		}
	}
}

// TestKilled gives the exit code of shells for a docker that a signal has ended, and ends docker with its context.
func TestKilled(t *testing.T) {
	t.Parallel()
	var exit *ExitError
	if err := shell("kill -KILL $$").execute(t.Context()); !errors.As(err, &exit) || exit.Code != 128+9 {
		t.Errorf("%v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := shell("exec sleep infinity").execute(ctx); !errors.As(err, &exit) || exit.Code != 128+15 {
		t.Errorf("%v", err)
	}
}

// TestSplit takes docker's own options off the arguments of the plugin, and keeps them for docker.
func TestSplit(t *testing.T) {
	t.Setenv(originalCommand, "/opt/docker")
	docker, command, help, err := Split(strings.Fields("-H tcp://hsm:1 --context build -D hsm run -H x --help"))
	if err != nil || help || docker.program != "/opt/docker" || strings.Join(command, " ") != "hsm run -H x --help" ||
		strings.Join(docker.options, " ") != "--host=tcp://hsm:1 --context=build --debug=true" {
		t.Errorf("%+v %v %t %v", docker, command, help, err)
	}
	t.Setenv(originalCommand, "")
	if docker, _, help, err := Split([]string{"--help", "hsm"}); err != nil || !help || docker.program != "docker" {
		t.Errorf("%+v %t %v", docker, help, err)
	}
	if _, _, _, err := Split([]string{"--new", "hsm"}); err == nil {
		t.Error("an unknown option")
	}
}
