package main

import (
	"github.com/spf13/cobra"

	"github.com/notation-hsm/notation-hsm/internal/cli"
	"github.com/notation-hsm/notation-hsm/internal/keystore"
)

// command returns the command line of notation-hsm.
func command(ks *keystore.Keystore) *cobra.Command {
	return cli.Root(&cobra.Command{
		Use:   "notation-hsm",
		Short: "Sign container images with keys that never leave their hardware module",
		Long: `notation-hsm is the Notation plugin "hsm": with it, 'notation sign' uses a key in a PKCS#11 module
or a NetHSM. The commands below create keys and certificates there and add them to Notation's list
of signing keys.

A key is named by an RFC 7512 URI, such as "pkcs11:token=signing;object=release", by nethsm:KEYID,
by broker:NAME if a broker holds it, or by its alias in the config file. Settings are taken from
flags, the URI, the environment (NOTATION_HSM_MODULE_PATH is --module-path, and so on) and the
config file, in this order.

With NOTATION_HSM_BROKER=unix:PATH or https://HOST, keys are used through the broker there
('hsm-broker agent' or 'hsm-broker serve'). Commands that change keys or certificates, and those of
a CA, log in by themselves.

Exit codes: 2 for a wrong call, 3 if the operation is refused, 4 if something does not exist, 5 if a
token or service does not answer, 1 for other failures.`,
		Example: `  notation-hsm token list --module-path /usr/lib/softhsm/libsofthsm2.so
  notation-hsm key generate --token signing --spec EC-256 --label release
  notation-hsm install --key-name release --key "pkcs11:token=signing;object=release"`,
		Version: version,
	}, tokenCommand(ks.Direct()), keyCommand(ks), certCommand(ks), installCommand(), caCommand(ks),
		ceremonyCommand(ks.Direct()), trustCommand(ks), doctorCommand(ks), keyproviderCommand(ks),
		nethsmCommand(ks.Direct()), requestCommand())
}
