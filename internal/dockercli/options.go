package dockercli

import (
	"strings"

	"github.com/notation-hsm/notation-hsm/internal/failure"
)

// An option is one of a docker command.
type option struct {
	name  string // with its hyphens, as in --env
	value bool   // it has a value, which may be the next argument
}

// An optionTable has the options of a docker command by how they are written: "-e" and "--env". Docker's own parser,
// pflag, needs the same knowledge to find the first argument that is no option.
type optionTable struct {
	command string // for errors
	options map[string]option
}

// newTable returns a table of options without and with a value. Options are separated by spaces, and written as "rm",
// or "env/e" if there is a short form.
func newTable(command, without, with string) optionTable {
	table := optionTable{command, map[string]option{}}
	for value, list := range map[bool]string{false: without, true: with} {
		for _, text := range strings.Fields(list) {
			name, short, _ := strings.Cut(text, "/")
			o := option{"--" + name, value}
			table.options[o.name] = o
			if short != "" {
				table.options["-"+short] = o
			}
		}
	}
	return table
}

// The tables are those of docker 29.7, in its source cli/flags/options.go, cli/command/image/pull.go, and
// cli/command/container: run.go and opts.go. They include the hidden options and those of older versions.
var (
	globalTable = newTable("docker", "debug/D help/h tls tlsverify version/v",
		"config context/c host/H log-level/l tlscacert tlscert tlskey")

	pullTable = newTable("docker pull", "all-tags/a disable-content-trust help quiet/q", "platform")

	runTable = newTable("docker run", `
		detach/d disable-content-trust help init interactive/i no-healthcheck oom-kill-disable privileged publish-all/P
		quiet/q read-only rm sig-proxy tty/t use-api-socket`, `
		add-host annotation attach/a blkio-weight blkio-weight-device cap-add cap-drop cgroup-parent cgroupns cidfile
		cpu-count cpu-percent cpu-period cpu-quota cpu-rt-period cpu-rt-runtime cpu-shares/c cpus cpuset-cpus cpuset-mems
		detach-keys device device-cgroup-rule device-read-bps device-read-iops device-write-bps device-write-iops
		dns dns-opt dns-option dns-search domainname entrypoint env/e env-file expose gpus group-add
		health-cmd health-interval health-retries health-start-interval health-start-period health-timeout hostname/h
		io-maxbandwidth io-maxiops ip ip6 ipc isolation kernel-memory label/l label-file link link-local-ip log-driver log-opt
		mac-address memory/m memory-reservation memory-swap memory-swappiness mount name net net-alias network network-alias
		oom-score-adj pid pids-limit platform publish/p pull restart runtime security-opt shm-size stop-signal stop-timeout
		storage-opt sysctl tmpfs ulimit user/u userns uts volume/v volume-driver volumes-from workdir/w`)
)

// helpOption is how read writes an option that asks for help.
const helpOption = "--help=true"

// read splits arguments into options and the rest, which begins with the first argument that is no option. Each option
// is returned as one argument, --NAME=VALUE, which docker reads as an option whatever it knows about it: so docker
// finds the same first argument. ended is true if the argument -- ends the options. An option that is not in the table
// is a failure, unless its value is in the same argument: the next one could be its value, or the image.
func (t optionTable) read(args []string) (options, rest []string, ended bool, err error) {
	for len(args) > 0 {
		arg := args[0]
		if arg == "--" {
			return options, args[1:], true, nil
		}
		if len(arg) < 2 || arg[0] != '-' {
			return options, args, false, nil
		}
		args = args[1:]
		letters := arg[1:]
		if strings.HasPrefix(arg, "--") {
			letters = ""
			if strings.Contains(arg, "=") {
				options = append(options, arg)
				continue
			}
			if options, args, err = t.add(options, args, arg); err != nil {
				return nil, nil, false, err
			}
		}
		for letters != "" { // -it is -i -t, -eA=1 is -e A=1, and -e=A=1 is too
			letter, after := "-"+letters[:1], letters[1:]
			o, known := t.options[letter]
			if value, ok := strings.CutPrefix(after, "="); ok && (!known || after != "=") {
				if !known {
					o.name = letter
				}
				options = append(options, o.name+"="+value)
				break
			}
			if o.value && after != "" {
				options = append(options, o.name+"="+after)
				break
			}
			if options, args, err = t.add(options, args, letter); err != nil {
				return nil, nil, false, err
			}
			letters = after
		}
	}
	return options, nil, false, nil
}

// add adds an option whose value, if it has one, is the first of args, and returns the other args.
func (t optionTable) add(options, args []string, written string) (added, rest []string, err error) {
	o, known := t.options[written]
	switch {
	case !known:
		return nil, nil, failure.New(failure.Invalid, "unknown option %s of %s", written, t.command).
			WithHint("write its value in the same argument: " + written + "=VALUE, or " + written + "=true")
	case !o.value:
		return append(options, o.name+"=true"), args, nil
	case len(args) == 0:
		return nil, nil, failure.New(failure.Invalid, "option %s of %s needs a value", written, t.command).
			WithHint("see '" + t.command + " --help'")
	}
	return append(options, o.name+"="+args[0]), args[1:], nil
}
