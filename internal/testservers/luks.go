package testservers

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
)

// RewriteLUKS does what a host can do to a LUKS2 disk: it changes the first
// occurrence of a text in both copies of the header, and makes their checksums right.
func RewriteLUKS(image []byte, old, text string) error {
	size := int(binary.BigEndian.Uint64(image[8:]))
	for i := range 2 {
		h := image[i*size : (i+1)*size]
		doc, _, _ := bytes.Cut(h[4096:], []byte{0})
		changed := bytes.Replace(doc, []byte(old), []byte(text), 1)
		if bytes.Equal(changed, doc) {
			return fmt.Errorf("the header does not say %s: %s", old, doc)
		}
		clear(h[4096:])
		copy(h[4096:], changed)
		clear(h[448:512])
		sum := sha256.Sum256(h)
		copy(h[448:], sum[:])
	}
	return nil
}
