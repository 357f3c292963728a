// Command sigstore-kms-hsm is the KMS plugin "hsm" of cosign and other programs of sigstore: with it, cosign signs with
// keys in a PKCS#11 module or a NetHSM.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/notation-hsm/notation-hsm/internal/backends"
	"github.com/notation-hsm/notation-hsm/internal/cli"
	"github.com/notation-hsm/notation-hsm/internal/crashreport"
	"github.com/notation-hsm/notation-hsm/internal/kms"
)

// version is set by the linker for releases.
var version = "0.1.0"

func main() { os.Exit(run()) }

func run() int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if len(os.Args) != 3 { // a person
		return cli.Run(ctx, command())
	}
	if err := cli.Prepare(kms.FormatError); err != nil {
		_, _ = os.Stdout.Write(kms.FormatError(err)) // there is nowhere to report that writing has failed
		return 1
	}
	crashreport.SetOutput(os.Stdout) // cosign reads failures there
	ks := backends.Keystore()
	defer ks.Close()
	return kms.Serve(ctx, ks, os.Args[1:], os.Stdin, os.Stdout)
}

// command returns the command line for people.
func command() *cobra.Command {
	return cli.Root(&cobra.Command{
		Use:   "sigstore-kms-hsm",
		Short: "Let cosign sign with keys in a PKCS#11 module or a NetHSM",
		Long: `sigstore-kms-hsm is cosign's KMS plugin "hsm": cosign starts it for keys whose names begin with
hsm://, if it is in PATH. After hsm:// stands a key as notation-hsm names it: an RFC 7512 URI,
nethsm:KEYID, broker:NAME for a key of a broker, or an alias in the config file. Settings
are taken from the URI, the environment and the config file, as notation-hsm takes them.`,
		Example: `  cosign sign --key "hsm://pkcs11:token=signing;object=release" registry.example.com/app@sha256:...`,
		Version: version,
	})
}
