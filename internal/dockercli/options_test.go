package dockercli

import (
	"maps"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"testing"

	softhsmtest "github.com/notation-hsm/notation-hsm/softhsm-test"
)

// TestRead finds the image where docker does, and leaves docker no other way to read the options.
func TestRead(t *testing.T) {
	t.Parallel()
	for line, want := range map[string]string{
		"image":                             " | image",
		"image -it --rm sh":                 " | image -it --rm sh",
		"--rm -d image sh -c x":             "--rm=true --detach=true | image sh -c x",
		"--rm=false image":                  "--rm=false | image",
		"-it image":                         "--interactive=true --tty=true | image",
		"-e A=1 image":                      "--env=A=1 | image",
		"-eA=1 image":                       "--env=A=1 | image",
		"-e=A=1 image":                      "--env=A=1 | image",
		"-env image":                        "--env=nv | image",
		"-e image other":                    "--env=image | other",
		"--env A=1 --env=B=2 image":         "--env=A=1 --env=B=2 | image",
		"--env -it image":                   "--env=-it | image",
		"--env -- image":                    "--env=-- | image",
		"-ite A=1 image":                    "--interactive=true --tty=true --env=A=1 | image",
		"-itp80:80 image":                   "--interactive=true --tty=true --publish=80:80 | image",
		"-it=false image":                   "--interactive=true --tty=false | image",
		"-h web image":                      "--hostname=web | image",
		"-v /a:/b:ro -w /b image":           "--volume=/a:/b:ro --workdir=/b | image",
		"-- image --rm":                     " | image --rm",
		"--rm -- image":                     "--rm=true | image",
		"-P -p 80 image":                    "--publish-all=true --publish=80 | image",
		"- image":                           " | - image",
		"--new=x image":                     "--new=x | image",
		"-Z=x image":                        "-Z=x | image",
		"-tZ=x image":                       "--tty=true -Z=x | image",
		"--net host --kernel-memory 1g img": "--net=host --kernel-memory=1g | img",
		"--rm":                              "--rm=true | ",
		"":                                  " | ",
		"--help image":                      "--help=true | image",
	} {
		options, rest, _, err := runTable.read(strings.Fields(line))
		if got := strings.Join(options, " ") + " | " + strings.Join(rest, " "); err != nil || got != want {
			t.Errorf("%q: %q, %v, want %q", line, got, err, want)
		}
	}
	for line, want := range map[string]string{
		"--new image":   "unknown option --new of docker run",
		"--new x image": "unknown option --new of docker run",
		"-itZ image":    "unknown option -Z of docker run",
		"-Z x image":    "unknown option -Z of docker run",
		"--d image":     "unknown option --d of docker run",
		"---rm image":   "unknown option ---rm of docker run",
		"--env":         "option --env of docker run needs a value",
		"--rm -ite":     "option -e of docker run needs a value",
	} {
		if options, rest, _, err := runTable.read(strings.Fields(line)); err == nil || err.Error() != want {
			t.Errorf("%q: %q %q, %v, want %q", line, options, rest, err, want)
		}
	}
	// An empty value stays one.
	options, rest, _, err := runTable.read([]string{"--env", "", "-e", "", "image"})
	if err != nil || !slices.Equal(options, []string{"--env=", "--env="}) || len(rest) != 1 {
		t.Errorf("empty values: %q %q %v", options, rest, err)
	}
	options, rest, _, err = runTable.read([]string{"", "image"})
	if err != nil || len(options) != 0 || len(rest) != 2 {
		t.Errorf("an empty argument: %q %q %v", options, rest, err)
	}
}

var shown = regexp.MustCompile(`(?m)^ +(?:(-\w), )?(--[\w-]+)( \w+)? {2,}\S`)

// TestTables compares the tables with docker itself: with its help, which lists the options that are not hidden, and
// with its parser, which wants an argument for each option that has a value.
func TestTables(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("-short leaves out what needs docker's command line: run 'make test'")
	}
	docker := softhsmtest.Build(t, "docker")
	run := func(args ...string) string {
		cmd := exec.Command(docker, args...)
		cmd.Env = []string{"HOME=" + t.TempDir(), "DOCKER_HOST=unix:///nowhere"}
		output, _ := cmd.CombinedOutput() // wrong calls fail
		return string(output)
	}
	for table, command := range map[*optionTable][]string{&globalTable: {}, &pullTable: {"pull"}, &runTable: {"run"}} {
		help := shown.FindAllStringSubmatch(run(append(command, "--help")...), -1)
		if len(help) < 2 {
			t.Errorf("%s shows no options", table.command)
		}
		for _, match := range help {
			short, name, value := match[1], match[2], match[3] != ""
			if o, known := table.options[name]; !known || o.value != value {
				t.Errorf("%s %s has a value: %t, and the table says %v", table.command, name, value, o)
			}
			if short != "" && table.options[short].name != name {
				t.Errorf("%s: %s is not %v", table.command, name, table.options[short])
			}
		}
		for _, written := range slices.Sorted(maps.Keys(table.options)) {
			if name := table.options[written].name; name == "--help" || name == "--version" {
				continue // docker stops there
			}
			output := run(append(command, written)...)
			if strings.Contains(output, "unknown") {
				t.Errorf("%s does not know %s: %s", table.command, written, output)
			}
			if needs := strings.Contains(output, "flag needs an argument"); needs != table.options[written].value {
				t.Errorf("%s %s needs a value: %t\n%s", table.command, written, needs, output)
			}
		}
	}
}
