package broker

import (
	"context"
	"slices"
	"testing"

	"github.com/claviger/claviger/broker/attest"
)

type boundSets struct {
	IdentityBook
	sets [][]string
}

func (b *boundSets) Bind(_ context.Context, ids []string) error {
	b.sets = append(b.sets, ids)
	return nil
}

// TestBindIdentities: what only a part of a token is called that its verifier does not vouch for is bound to nobody.
func TestBindIdentities(t *testing.T) {
	for _, tc := range []struct {
		of   attest.Type
		want int
	}{{attest.TypeTPM, 1}, {attest.TypeTDX, 1}, {attest.TypeResult, 0}} {
		book := &boundSets{}
		b := &Broker{cfg: Config{Identities: book}}
		if err := b.bindIdentities(t.Context(), attest.Claims{Type: tc.of, ChipID: "mine", Identities: []string{"another"}}); err != nil {
			t.Fatal(err)
		}
		if len(book.sets) != tc.want || tc.want == 1 && !slices.Equal(book.sets[0], []string{"mine", "another"}) {
			t.Errorf("%s: bound %v", tc.of, book.sets)
		}
	}
}
