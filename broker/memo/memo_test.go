package memo

import (
	"encoding/binary"
	"errors"
	"testing"
)

func TestMemo(t *testing.T) {
	var m Memo[int]
	key := func(i int) [32]byte {
		var k [32]byte
		binary.LittleEndian.PutUint64(k[:], uint64(i))
		return k
	}
	made := 0
	get := func(i int) int {
		v, err := m.Get(key(i), func() (int, error) { made++; return i, nil })
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
	for i := range 3 * size {
		for range 2 { // the second time from the memo
			if v := get(i); v != i {
				t.Fatalf("got %d for %d", v, i)
			}
		}
	}
	if made != 3*size {
		t.Errorf("made %d values, want %d", made, 3*size)
	}
	if len(m.m) != size || len(m.order) != size {
		t.Errorf("%d entries, want %d", len(m.m), size)
	}
	if get(0); made != 3*size+1 {
		t.Error("the oldest entry was not dropped")
	}
	// Failures are not remembered.
	if _, err := m.Get(key(-1), func() (int, error) { return 0, errors.New("no") }); err == nil {
		t.Error("an error was lost")
	}
	if v, err := m.Get(key(-1), func() (int, error) { return 7, nil }); v != 7 || err != nil {
		t.Errorf("after a failure: %d, %v", v, err)
	}
}

// Parts of a key are kept apart.
func TestKey(t *testing.T) {
	if Key([]byte("ab"), []byte("c")) == Key([]byte("a"), []byte("bc")) {
		t.Error("the key does not tell its parts apart")
	}
}
