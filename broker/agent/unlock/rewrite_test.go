package unlock

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"testing"
)

// rewrite does what a host can do to a disk: change the first occurrence of a
// text in both copies of the header, and make their checksums right.
func rewrite(t *testing.T, image []byte, old, text string) []byte {
	t.Helper()
	out := bytes.Clone(image)
	size := int(binary.BigEndian.Uint64(out[8:]))
	for i := range 2 {
		h := out[i*size : (i+1)*size]
		doc, _, _ := bytes.Cut(h[4096:], []byte{0})
		changed := bytes.Replace(doc, []byte(old), []byte(text), 1)
		if bytes.Equal(changed, doc) {
			t.Fatalf("the header does not say %s: %s", old, doc)
		}
		clear(h[4096:])
		copy(h[4096:], changed)
		clear(h[448:512])
		sum := sha256.Sum256(h)
		copy(h[448:], sum[:])
	}
	return out
}
