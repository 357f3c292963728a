// Command hsm-image encrypts container images to keys in a module, decrypts them with such keys, and verifies
// signatures before an image is run.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/notation-hsm/notation-hsm/internal/backends"
	"github.com/notation-hsm/notation-hsm/internal/cli"
	"github.com/notation-hsm/notation-hsm/internal/keystore"
)

// version is set by the linker for releases.
var version = "0.1.0"

func main() { os.Exit(run()) }

func run() int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := cli.Prepare(cli.FormatError); err != nil {
		_, _ = os.Stderr.Write(cli.FormatError(err))
		return 1
	}
	ks := backends.Keystore()
	defer ks.Close()
	return cli.Run(ctx, command(ks))
}

// command returns the command that holds all others.
func command(ks *keystore.Keystore) *cobra.Command {
	return cli.Root(&cobra.Command{
		Use:   "hsm-image",
		Short: "Encrypt images to keys in a module, decrypt them there, and verify images before they run",
		Long: `hsm-image encrypts container images so that only a key in a PKCS#11 module decrypts them, decrypts
such images, and verifies signatures before an image is run. Images are named as skopeo names them:
docker://registry.example.com/app:1, oci:DIR:TAG, oci-archive:FILE, docker-archive:FILE or dir:DIR.`,
		Version: version,
	},
		containerdDecoderCommand(ks), containerdConfigCommand(),
		encryptCommand(ks), decryptCommand(ks), layersCommand(ks), recipientsCommand(ks),
		verifyCommand(), resolveCommand(), installVerifierCommand(), verifierCommand(), tagCommand(ks), approvalsCommand(),
		auditCommand(),
	)
}
