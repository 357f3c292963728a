// Command skopeo copies an image as "skopeo copy" does, with the same library and the same flags for encryption.
// Debian's skopeo is too old for key providers.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"

	encconfig "github.com/containers/ocicrypt/config"
	"github.com/containers/ocicrypt/helpers"
	"go.podman.io/image/v5/copy"
	"go.podman.io/image/v5/signature"
	"go.podman.io/image/v5/types"

	"github.com/notation-hsm/notation-hsm/internal/image"
)

func main() {
	var encryption, decryption []string
	flag.Func("encryption-key", "jwe:FILE, pkcs7:FILE or provider:NAME:PARAMETERS",
		func(s string) error { encryption = append(encryption, s); return nil })
	flag.Func("decryption-key", "FILE or provider:NAME:PARAMETERS",
		func(s string) error { decryption = append(decryption, s); return nil })
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, flag.Arg(0), flag.Arg(1), encryption, decryption); err != nil {
		fmt.Fprintln(os.Stderr, "error:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, source, destination string, encryption, decryption []string) error {
	from, err := image.ParseReference(source)
	if err != nil {
		return err
	}
	to, err := image.ParseReference(destination)
	if err != nil {
		return err
	}
	plain := &types.SystemContext{DockerInsecureSkipTLSVerify: types.OptionalBoolTrue}
	options := &copy.Options{SourceCtx: plain, DestinationCtx: plain, ImageListSelection: copy.CopyAllImages}
	if len(encryption) > 0 {
		config, err := helpers.CreateCryptoConfig(encryption, nil)
		if err != nil {
			return err
		}
		options.OciEncryptConfig = encconfig.CombineCryptoConfigs([]encconfig.CryptoConfig{config}).EncryptConfig
		options.OciEncryptLayers = &[]int{}
	}
	if len(decryption) > 0 {
		config, err := helpers.CreateCryptoConfig(nil, decryption)
		if err != nil {
			return err
		}
		options.OciDecryptConfig = encconfig.CombineCryptoConfigs([]encconfig.CryptoConfig{config}).DecryptConfig
	}
	policy, err := signature.NewPolicyContext(
		&signature.Policy{Default: signature.PolicyRequirements{signature.NewPRInsecureAcceptAnything()}})
	if err != nil {
		return err
	}
	defer func() { _ = policy.Destroy() }()
	_, err = copy.Image(ctx, policy, to.ImageReference, from.ImageReference, options)
	return err
}
