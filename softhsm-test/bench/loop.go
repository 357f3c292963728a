package main

import (
	"context"
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"flag"
	"fmt"
	"io"
	"sync"
	"sync/atomic"
	"time"

	"github.com/ThalesGroup/crypto11"

	"github.com/notation-hsm/notation-hsm/internal/backends"
	"github.com/notation-hsm/notation-hsm/internal/config"
	"github.com/notation-hsm/notation-hsm/internal/deadline"
	"github.com/notation-hsm/notation-hsm/internal/keystore"
	"github.com/notation-hsm/notation-hsm/internal/pkcs11"
)

// loop signs in goroutines and prints how many signatures a second all of them made. It runs in a process of its own,
// for a module can be started only once in each. As the plugin does, it is one watched job: a signature that hangs ends
// it.
func loop(arguments []string) error {
	return deadline.Run(context.Background(), func(ctx context.Context) error { return loopIn(ctx, arguments) })
}

func loopIn(ctx context.Context, arguments []string) error {
	flags := flag.NewFlagSet("loop", flag.ContinueOnError)
	with := flags.String("with", "internal/pkcs11", "or worker, or crypto11")
	module := flags.String("module", "", "PKCS#11 library")
	pin := flags.String("pin", "", "user PIN")
	label := flags.String("label", "", "label of the key")
	socket := flags.String("socket", "", "of an agent that holds the token, instead of a module")
	goroutines := flags.Int("goroutines", 1, "how many sign at once")
	seconds := flags.Float64("seconds", 0, "how long, or")
	count := flags.Int64("count", 0, "how many signatures")
	if err := flags.Parse(arguments); err != nil {
		return err
	}
	if *socket != "" {
		return throughAgent(*socket, *label, *goroutines, *seconds, *count)
	}
	open := map[string]func(context.Context, string, string, string) (crypto.Signer, io.Closer, error){
		"internal/pkcs11": openOurs, "worker": openWorker, "crypto11": openCrypto11,
	}[*with]
	signer, token, err := open(ctx, *module, *pin, *label)
	if err != nil {
		return err
	}
	defer token.Close()
	var opts crypto.SignerOpts = crypto.SHA256
	if _, ok := signer.Public().(*rsa.PublicKey); ok {
		opts = &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash, Hash: crypto.SHA256}
	}
	digest := []byte("thirty-two bytes make one digest")
	var made atomic.Int64
	var failed atomic.Pointer[error]
	var group sync.WaitGroup
	start := time.Now()
	for range *goroutines {
		group.Go(func() {
			for failed.Load() == nil {
				n := made.Add(1)
				if (*count > 0 && n > *count) || (*count == 0 && time.Since(start).Seconds() > *seconds) {
					made.Add(-1)
					return
				}
				if _, err := signer.Sign(rand.Reader, digest, opts); err != nil {
					failed.Store(&err)
				}
			}
		})
	}
	group.Wait()
	if err := failed.Load(); err != nil {
		return *err
	}
	fmt.Println(float64(made.Load()) / time.Since(start).Seconds())
	return nil
}

func openOurs(ctx context.Context, module, pin, label string) (crypto.Signer, io.Closer, error) {
	token, err := pkcs11.New().Open(ctx, &config.Settings{
		ModulePath: module, PIN: pin, Key: config.URI{Token: tokenLabel, Object: label}, Timeout: config.DefaultTimeout,
	})
	if err != nil {
		return nil, nil, err
	}
	key, err := token.Key(ctx, nil)
	if err != nil {
		token.Close()
		return nil, nil, err
	}
	return keystore.Signer(ctx, key), token, nil
}

// openWorker opens the key in a process of the module's own.
func openWorker(ctx context.Context, module, pin, label string) (crypto.Signer, io.Closer, error) {
	ks := backends.Service()
	store, err := ks.Reference(&config.Settings{
		ModulePath: module, PIN: pin, Key: config.URI{Token: tokenLabel, Object: label}, Timeout: config.DefaultTimeout,
	}).Open(ctx)
	if err != nil {
		return nil, nil, err
	}
	key, err := store.Key(ctx, nil)
	if err != nil {
		return nil, nil, err
	}
	return keystore.Signer(ctx, key), ks, nil
}

func openCrypto11(_ context.Context, module, pin, label string) (crypto.Signer, io.Closer, error) {
	c, err := crypto11.Configure(&crypto11.Config{Path: module, TokenLabel: tokenLabel, Pin: pin})
	if err != nil {
		return nil, nil, err
	}
	key, err := c.FindKeyPair(nil, []byte(label))
	if err == nil && key == nil {
		err = fmt.Errorf("crypto11 finds no key %s", label)
	}
	if err != nil {
		c.Close()
		return nil, nil, err
	}
	return key, c, nil
}
