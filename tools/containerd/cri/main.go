// Command cri speaks to containerd as a kubelet does, for tests: "cri SOCKET pull IMAGE" pulls an image and prints its
// ID; "cri SOCKET images" prints the digests of the images there are.
package main

import (
	"context"
	"fmt"
	"os"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(args []string) error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if len(args) < 2 {
		return fmt.Errorf("usage: cri SOCKET pull IMAGE, or cri SOCKET images")
	}
	connection, err := grpc.NewClient("unix://"+args[0], grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return err
	}
	defer connection.Close()
	images := runtime.NewImageServiceClient(connection)
	switch {
	case args[1] == "pull" && len(args) == 3:
		pulled, err := images.PullImage(ctx, &runtime.PullImageRequest{Image: &runtime.ImageSpec{Image: args[2]}})
		if err != nil {
			return err
		}
		fmt.Println(pulled.GetImageRef())
	case args[1] == "images" && len(args) == 2:
		list, err := images.ListImages(ctx, &runtime.ListImagesRequest{})
		if err != nil {
			return err
		}
		for _, image := range list.GetImages() {
			fmt.Println(image.GetId())
		}
	default:
		return fmt.Errorf("unknown command %q", args[1:])
	}
	return nil
}
