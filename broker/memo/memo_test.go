package memo

import (
	"encoding/binary"
	"errors"
	"testing"
)

func key(i int) [32]byte {
	var k [32]byte
	binary.LittleEndian.PutUint64(k[:], uint64(i))
	return k
}

func TestGet(t *testing.T) {
	var m Memo[int]
	made := 0
	for i := range 3 * defaultSize {
		for range 2 { // the second time from the memo
			v, err := m.Get(key(i), func() (int, error) { made++; return i, nil })
			if err != nil || v != i {
				t.Fatalf("got %d, %v for %d", v, err, i)
			}
		}
		if m.Len() > defaultSize {
			t.Fatalf("%d entries", m.Len())
		}
	}
	if made != 3*defaultSize {
		t.Errorf("made %d values, want %d", made, 3*defaultSize)
	}
	if _, ok := m.Find(key(0)); ok {
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

// TestInUse: bounded, and what is in use stays.
func TestInUse(t *testing.T) {
	m := Memo[int]{Size: 8}
	m.Keep(key(-1), 7)
	for i := range 1000 {
		m.Keep(key(i), i)
		if m.Len() > m.Size {
			t.Fatalf("%d entries", m.Len())
		}
		if v, ok := m.Find(key(-1)); !ok || v != 7 {
			t.Fatal("an entry in use was dropped")
		}
	}
}

// Parts of a key are kept apart.
func TestKey(t *testing.T) {
	if Key([]byte("ab"), []byte("c")) == Key([]byte("a"), []byte("bc")) {
		t.Error("the key does not tell its parts apart")
	}
}
