package teesim

import "crypto/sha512"

// Measurement is the launch measurement of a made-up image. Its name says what
// it stands for; an empty name is the demo's good image.
func Measurement(image string) [48]byte {
	if image == "" {
		image = "demo-image"
	}
	return sha512.Sum384([]byte("claviger simulated image: " + image))
}
