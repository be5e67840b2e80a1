package broker

import (
	"strings"
	"testing"
)

// TestNamesFromParameters: neither case nor dots nor where one parameter ends make one name of two resources.
func TestNamesFromParameters(t *testing.T) {
	pki := func(options map[string]string) CatalogEntry {
		return CatalogEntry{Pattern: "certs/{tenant}/{vm}", Source: "vault", Kind: KindPKI, Key: "workload", Policy: "p", Options: options}
	}
	label := map[string]string{"common_name": "{vm}.corp", "uri_sans": "spiffe://corp/{tenant}/{vm}"}
	whole := map[string]string{"dns_sans": "a.corp, {vm}"}
	authority := map[string]string{"uri_sans": "spiffe://{tenant}.corp/{vm}"}
	for _, tt := range []struct {
		options    map[string]string
		tenant, vm string
		ok         bool
	}{
		{label, "t", "pay", true}, {label, "t", "PAY", false}, {label, "t", "db.prod", false}, {label, "t", "pay.", false}, {label, "t", "-pay", false}, {label, "t", "pa_y", false},
		{label, "T.x", "pay", true}, // in a URI's path, case and dots count
		{whole, "t", "pay.corp", true}, {whole, "t", "PAY.corp", false}, {whole, "t", "pay.corp.", false}, {whole, "t", "pay..corp", false}, {whole, "t", ".corp", false}, {whole, "t", "pay", true},
		{authority, "t", "PAY", true}, {authority, "T", "pay", false}, {authority, "t.u", "pay", false}, {authority, "t", "pay", true},
	} {
		c, err := NewCatalog([]CatalogEntry{pki(tt.options)})
		if err != nil {
			t.Fatal(err)
		}
		e, params, ok := c.Lookup("certs/" + tt.tenant + "/" + tt.vm)
		if !ok {
			t.Fatalf("no entry for %s/%s", tt.tenant, tt.vm)
		}
		if err := e.nameable(params); (err == nil) != tt.ok {
			t.Errorf("%v of %s/%s: %v", tt.options, tt.tenant, tt.vm, err)
		}
	}
	for _, tt := range []struct {
		kind          Kind
		option, value string
		ok            bool
	}{
		{KindPKI, "common_name", "{vm}.{tenant}.corp", true}, {KindPKI, "common_name", "{vm}-{tenant}.corp", false}, {KindPKI, "common_name", "{vm}{tenant}", false},
		{KindPKI, "dns_sans", "{vm}.corp,{tenant}.corp", true}, {KindPKI, "dns_sans", "x.corp {vm}--{tenant}.corp", false},
		{KindPKI, "uri_sans", "spiffe://corp/{tenant}/{vm}", true}, {KindPKI, "uri_sans", "spiffe://corp/{tenant}.{vm}", false}, {KindPKI, "uri_sans", "spiffe://corp/{tenant}_{vm}", false},
		{KindPKI, "uri_sans", "spiffe://{tenant}.corp/{vm}", true}, {KindPKI, "uri_sans", "spiffe://{tenant}.{vm}.corp/x", true}, {KindPKI, "uri_sans", "spiffe://{tenant}-{vm}.corp/x", false},
		{KindTransitDecrypt, "context", "{tenant}/{vm}", true}, {KindTransitDecrypt, "context", "{tenant}:{vm}", true}, {KindTransitDecrypt, "context", "{tenant}.{vm}", false}, {KindTransitDecrypt, "context", "v1-{tenant}{vm}", false},
		{KindTransitDecrypt, "context", "vm-{vm}", true},
	} {
		e := CatalogEntry{Pattern: "x/{tenant}/{vm}", Source: "vault", Kind: tt.kind, Key: "k", Policy: "p", Options: map[string]string{tt.option: tt.value}}
		err := e.Validate()
		if (err == nil) != tt.ok || err != nil && !strings.Contains(err.Error(), "run together") {
			t.Errorf("%s %s %q: %v", tt.kind, tt.option, tt.value, err)
		}
	}
}
