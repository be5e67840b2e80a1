package dcap

import (
	"encoding/binary"
	"errors"
	"testing"
)

func TestMemo(t *testing.T) {
	var m memo[int]
	key := func(i int) [32]byte {
		var k [32]byte
		binary.LittleEndian.PutUint64(k[:], uint64(i))
		return k
	}
	made := 0
	get := func(i int) int {
		v, err := m.get(key(i), func() (int, error) { made++; return i, nil })
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
	for i := range 3 * memoSize {
		for range 2 { // the second time from the memo
			if v := get(i); v != i {
				t.Fatalf("got %d for %d", v, i)
			}
		}
	}
	if made != 3*memoSize {
		t.Errorf("made %d values, want %d", made, 3*memoSize)
	}
	if len(m.m) != memoSize || len(m.order) != memoSize {
		t.Errorf("%d entries, want %d", len(m.m), memoSize)
	}
	if get(0); made != 3*memoSize+1 {
		t.Error("the oldest entry was not dropped")
	}
	// Failures are not remembered.
	if _, err := m.get(key(-1), func() (int, error) { return 0, errors.New("no") }); err == nil {
		t.Error("an error was lost")
	}
	if v, err := m.get(key(-1), func() (int, error) { return 7, nil }); v != 7 || err != nil {
		t.Errorf("after a failure: %d, %v", v, err)
	}
}

// Parts of a key are kept apart.
func TestMemoKey(t *testing.T) {
	if memoKey([]byte("ab"), []byte("c")) == memoKey([]byte("a"), []byte("bc")) {
		t.Error("the key does not tell its parts apart")
	}
}
