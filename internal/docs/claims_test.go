package docs

import (
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/claviger/claviger/broker/attest"
	"github.com/claviger/claviger/broker/tee"
)

// TestEveryClaimHasAVoucher: for each claim, a row of its page says whose word it is, and what a policy may base on it.
func TestEveryClaimHasAVoucher(t *testing.T) {
	pages := map[string]string{ // by member of the claims
		"sev_snp": "sev-snp", "tdx": "tdx", "tpm": "tpm", "sgx": "sgx", "azure_vtpm": "azure-vtpm", "gce_vtpm": "gce-vtpm", "nitro": "nitro",
		"keystone": "keystone", "attestation_result": "attestation-result", "psa": "psa", "cca": "cca", "nvidia_gpu": "nvidia-gpu",
	}
	check := func(page string, v reflect.Type, skip ...string) {
		rows := vouchers(t, page)
		for _, name := range members(v) {
			if !slices.Contains(skip, name) && !rows[name] {
				t.Errorf("docs/evidence/%s.md does not say whose word %s is", page, name)
			}
		}
	}
	all := reflect.ValueOf(tee.Claims())
	var vendors []string
	for i := range all.NumField() {
		if f := all.Field(i); f.Kind() == reflect.Interface {
			name, _, _ := strings.Cut(all.Type().Field(i).Tag.Get("json"), ",")
			vendors = append(vendors, name)
			if pages[name] == "" {
				t.Errorf("no page for %s", name)
				continue
			}
			v := f.Elem().Type()
			for v.Kind() == reflect.Pointer {
				v = v.Elem()
			}
			check(pages[name], v)
		}
	}
	check("README", reflect.TypeFor[attest.Claims](), append(vendors, "devices")...)
}

// vouchers are the names in the first column of the table of a page.
func vouchers(t *testing.T, page string) map[string]bool {
	t.Helper()
	_, table, ok := strings.Cut(read(t, "docs/evidence/"+page+".md"), "| claim | whose word | a policy may |\n")
	if !ok {
		t.Fatalf("docs/evidence/%s.md has no table of claims", page)
	}
	table, _, _ = strings.Cut(table, "\n\n")
	rows := map[string]bool{}
	for line := range strings.Lines(table) {
		columns := strings.Split(line, "|")
		if len(columns) != 5 {
			t.Errorf("docs/evidence/%s.md: %q has not three columns", page, line)
			continue
		}
		for _, m := range regexp.MustCompile("`([a-z0-9_.*]+)`").FindAllStringSubmatch(columns[1], -1) {
			name, _, _ := strings.Cut(m[1], ".")
			rows[name] = true
		}
	}
	return rows
}

func members(t reflect.Type) (out []string) {
	for i := range t.NumField() {
		name, _, _ := strings.Cut(t.Field(i).Tag.Get("json"), ",")
		if t.Field(i).IsExported() && name != "-" {
			out = append(out, name)
		}
	}
	return out
}
