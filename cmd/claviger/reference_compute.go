package main

import (
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"sigs.k8s.io/yaml"

	"github.com/claviger/claviger/broker/attest"
	"github.com/claviger/claviger/broker/measure"
	"github.com/claviger/claviger/internal/cli"
)

// referenceFile is broker.ReferenceSet in a file: what `reference compute`
// writes and `reference add` reads, without what the broker fills in.
type referenceFile struct {
	Type       attest.Type    `json:"type"`
	State      string         `json:"state"`
	Values     measure.Values `json:"values"`
	Provenance struct {
		Source  string `json:"source"`
		Comment string `json:"comment"`
	} `json:"provenance"`
}

// computation collects one reference set, and where each part of it comes from.
type computation struct {
	set               referenceFile
	flags             map[string]string // by measure.Error's field: how to name the input
	sources           []string
	computed, notSeen []string // claims; those that no hardware has confirmed
	observed, tooLong []string
}

const (
	maxInput = 1 << 30
	maxValue = 1024 // of a reference value (proto/claviger/v1/admin.proto): a boot chain of 15 programs
)

// read reads the file that a flag names.
func (c *computation) read(field, flag, path string) ([]byte, error) {
	c.flags[field] = "--" + flag + " " + path
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("--%s: %w", flag, err)
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxInput+1))
	switch {
	case err != nil:
		return nil, fmt.Errorf("--%s: %w", flag, err)
	case len(b) == 0:
		return nil, fmt.Errorf("--%s %s: the file is empty", flag, path)
	case len(b) > maxInput:
		return nil, fmt.Errorf("--%s %s: more than 1 GiB", flag, path)
	}
	c.sources = append(c.sources, fmt.Sprintf("%s %s sha256:%x", flag, filepath.Base(path), sha256.Sum256(b)))
	return b, nil
}

// say records a setting that the values depend on.
func (c *computation) say(format string, args ...any) {
	c.sources = append(c.sources, fmt.Sprintf(format, args...))
}

// add takes values, and names the input of which err speaks.
func (c *computation) add(v measure.Values, err error, lists ...*[]string) error {
	if bad, ok := errors.AsType[*measure.Error](err); ok {
		name := c.flags[bad.Field]
		if name == "" {
			name = "--" + bad.Field
		}
		return fmt.Errorf("%s: %w", name, bad.Err)
	}
	if err != nil {
		return err
	}
	for claim, list := range v {
		if len(list[0]) > maxValue {
			c.tooLong = append(c.tooLong, claim)
			continue
		}
		for _, value := range list {
			if !slices.Contains(c.set.Values[claim], value) { // logs of several machines may agree
				c.set.Values[claim] = append(c.set.Values[claim], value)
			}
		}
		for _, l := range lists {
			if !slices.Contains(*l, claim) {
				*l = append(*l, claim)
			}
		}
	}
	return nil
}

// finish writes down the provenance.
func (c *computation) finish(kind string) error {
	if len(c.set.Values) == 0 {
		return fmt.Errorf("%w: nothing to compute from: see claviger reference compute %s --help", errUsage, kind)
	}
	p := &c.set.Provenance
	p.Source = "claviger " + version + " reference compute " + kind + "; " + strings.Join(c.sources, "; ")
	var how []string
	for _, l := range []struct {
		name   string
		claims []string
	}{{"computed", c.computed}, {"observed in the event log", c.observed}, {"not checked against hardware", c.notSeen}, {"left out, too long", c.tooLong}} {
		if len(l.claims) > 0 {
			slices.Sort(l.claims)
			how = append(how, l.name+": "+strings.Join(l.claims, ", "))
		}
	}
	p.Comment = strings.Join(how, "; ")
	if n := max(len(p.Source), len(p.Comment)); n > 1024 {
		return fmt.Errorf("the provenance of so many files takes %d bytes, at most 1024", n)
	}
	return nil
}

// print writes the document, or a table for people.
func (c *computation) print(w io.Writer, output string) error {
	switch output {
	case "json":
		e := json.NewEncoder(w)
		e.SetIndent("", "  ")
		return e.Encode(c.set)
	case "yaml":
		b, err := yaml.Marshal(c.set)
		if err == nil {
			_, err = w.Write(b)
		}
		return err
	}
	err := table(w, "CLAIM VALUE HOW", func(row func(...any)) {
		for _, claim := range slices.Sorted(maps.Keys(c.set.Values)) {
			how := "computed"
			if slices.Contains(c.observed, claim) {
				how = "observed"
			}
			if slices.Contains(c.notSeen, claim) {
				how += ", not checked against hardware"
			}
			for _, v := range c.set.Values[claim] {
				row(claim, v, how)
			}
		}
	})
	if err != nil {
		return err
	}
	for _, claim := range c.tooLong {
		cli.Fprintf(w, "%s is left out: it is longer than the %d characters of a reference value\n", claim, maxValue)
	}
	word := "\nfrom"
	for source := range strings.SplitSeq(c.set.Provenance.Source, "; ") {
		_, _ = io.WriteString(w, word)
		cli.Fprintf(w, " %s\n", source)
		word = "    "
	}
	return nil
}

func referenceComputeCommand(a *adminFlags) *cobra.Command {
	group := &cobra.Command{
		Use: "compute", Short: "Predict reference values from the files that a machine boots",
		Long: `Predict reference values from the files that a machine boots, and write them as
a reference set for claviger reference add. No broker is asked.

At a terminal the output is a table, else YAML, unless --output says otherwise
(table, yaml, json). The set's provenance has the digests of all files, and
which values were computed and which only observed in an event log: those are as
good as the machine whose log it was.`,
	}
	group.PersistentPreRunE = func(*cobra.Command, []string) error {
		switch a.output {
		case "table", "json", "yaml":
			return nil
		}
		return fmt.Errorf("%w: --output is %q, want table, yaml or json", errUsage, a.output)
	}
	group.AddCommand(computeTPMCommand(a), computeSNPCommand(a), computeTDXCommand(a))
	return group
}

// compute runs f and prints what it collects.
func (a *adminFlags) compute(kind string, typ attest.Type, f func(*computation) error) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, _ []string) error {
		c := &computation{flags: map[string]string{}}
		c.set.Type, c.set.State, c.set.Values = typ, "active", measure.Values{}
		if err := f(c); err != nil {
			return err
		}
		if err := c.finish(kind); err != nil {
			return err
		}
		output := a.output
		if out := cli.File(cmd.OutOrStdout()); out != nil && !cmd.Flags().Changed("output") {
			if s, err := out.Stat(); err == nil && s.Mode()&os.ModeCharDevice == 0 {
				output = "yaml"
			}
		}
		return c.print(cmd.OutOrStdout(), output)
	}
}

// directFlags are the flags of a direct boot.
type directFlags struct {
	kernel, initrd, cmdline, memory string
	raw                             bool
}

func (d *directFlags) register(c *cobra.Command, patched bool) {
	f := c.Flags()
	f.StringVar(&d.kernel, "kernel", "", "kernel of a direct boot (QEMU's -kernel)")
	f.StringVar(&d.initrd, "initrd", "", "its initrd (-initrd)")
	f.StringVar(&d.cmdline, "cmdline", "", "its command line, as given to -append")
	if patched {
		f.StringVar(&d.memory, "memory", "", "the machine's memory as given to -m: QEMU writes the initrd's place into the kernel")
		f.BoolVar(&d.raw, "raw-kernel", false, "the firmware measures the kernel as the file is (OVMF 202505 and later, if QEMU offers it that kernel)")
	}
}

// read is nil if there is no kernel.
func (d *directFlags) read(c *computation) (*measure.DirectBoot, error) {
	if d.kernel == "" {
		if d.initrd != "" || d.cmdline != "" || d.memory != "" || d.raw {
			return nil, fmt.Errorf("%w: --initrd, --cmdline, --memory and --raw-kernel belong to a --kernel", errUsage)
		}
		return nil, nil
	}
	b := &measure.DirectBoot{Cmdline: d.cmdline, RawKernel: d.raw}
	var err error
	if b.Kernel, err = c.read("kernel", "kernel", d.kernel); err != nil {
		return nil, err
	}
	if d.initrd != "" {
		if b.Initrd, err = c.read("initrd", "initrd", d.initrd); err != nil {
			return nil, err
		}
	}
	if d.memory != "" {
		if b.Memory, err = measure.ParseMemory(d.memory); err != nil {
			return nil, fmt.Errorf("%w: --%w", errUsage, err)
		}
		c.say("memory %s", d.memory)
	}
	if d.raw {
		c.say("raw kernel")
	}
	c.say("cmdline %.200q", d.cmdline)
	return b, nil
}

func computeTPMCommand(a *adminFlags) *cobra.Command {
	var direct directFlags
	var uki string
	var programs, logs []string
	var more []int
	var secureBoot bool
	c := &cobra.Command{
		Use: "tpm", Short: "Predict the PCRs of a measured boot",
		Long: `Predict the PCRs of a measured boot with UEFI firmware:

  --kernel   QEMU boots a kernel directly (OVMF, machine type q35): pcr4, pcr9, boot_chain, cmdline, initrd
  --uki      firmware boots a unified kernel image of systemd-stub: pcr4, pcr11, boot_chain, cmdline,
             uki_linux and so on; pcr9 and initrd for systemd 252
  --efi      a chain of EFI programs from a disk, in the order they are loaded: pcr4, boot_chain

--from-log adds pcr0 (firmware), pcr2 (what devices brought with them) and pcr7
(Secure Boot) from a machine's event log, which cannot be computed: OVMF measures a part of itself after it has run,
so that PCR 0 depends on the machine, for example on its memory. Give the log
of each size of machine. --observe takes more PCRs from the log: what GRUB
measures (8: commands and command line, 9: files) follows from its scripts, which
nothing here runs.`,
		Example: `  claviger reference compute tpm --kernel vmlinuz --initrd initrd.img --cmdline "console=ttyS0" --memory 512M
  claviger reference compute tpm --uki linux.efi --secure-boot --from-log binary_bios_measurements > release.yaml
  claviger reference compute tpm --efi shimx64.efi --efi grubx64.efi --efi vmlinuz --efi vmlinuz --from-log binary_bios_measurements --observe 8,9
  claviger reference add release-7 --policy measured_boot --file release.yaml`,
		Args: noArgs,
	}
	c.RunE = a.compute("tpm", attest.TypeTPM, func(c *computation) error {
		forms := 0
		for _, given := range []bool{direct.kernel != "", uki != "", len(programs) > 0} {
			if given {
				forms++
			}
		}
		if forms > 1 {
			return fmt.Errorf("%w: --kernel, --uki and --efi are different ways to boot", errUsage)
		}
		if secureBoot && uki == "" {
			return fmt.Errorf("%w: --secure-boot changes nothing without --uki", errUsage)
		}
		if len(more) > 0 && len(logs) == 0 {
			return fmt.Errorf("%w: --observe is about a --from-log", errUsage)
		}
		boot, err := direct.read(c)
		if err != nil {
			return err
		}
		if boot != nil {
			v, err := boot.TPM()
			if err := c.add(v, err, &c.computed); err != nil {
				return err
			}
		}
		if uki != "" {
			b, err := c.read("uki", "uki", uki)
			if err != nil {
				return err
			}
			c.say("secure boot %v", secureBoot)
			v, err := measure.UKI(b, secureBoot)
			if err := c.add(v, err, &c.computed); err != nil {
				return err
			}
		}
		var digests [][]byte
		for _, path := range programs {
			b, err := c.read("efi", "efi", path)
			if err != nil {
				return err
			}
			d, err := measure.Authenticode(b, sha256.New)
			if err != nil {
				return fmt.Errorf("--efi %s: %w", path, err)
			}
			digests = append(digests, d)
		}
		if len(digests) > 0 {
			if err := c.add(measure.Chain(digests...), nil, &c.computed); err != nil {
				return err
			}
		}
		return c.observe(logs, func(log []byte) (measure.Values, error) { return measure.ObservedTPM(log, more...) })
	})
	direct.register(c, true)
	f := c.Flags()
	f.StringVar(&uki, "uki", "", "unified kernel image")
	f.BoolVar(&secureBoot, "secure-boot", false, "Secure Boot is on: the kernel inside of the --uki is not measured by itself")
	f.StringArrayVar(&programs, "efi", nil, "EFI program; repeat, a program that is loaded twice twice")
	f.StringArrayVar(&logs, "from-log", nil, "event log of a machine to take pcr0, pcr2 and pcr7 from (/sys/kernel/security/tpm0/binary_bios_measurements); repeat for other sizes of machine")
	f.IntSliceVar(&more, "observe", nil, "more PCRs to take from the log, as numbers")
	return c
}

// observe takes values from event logs.
func (c *computation) observe(paths []string, read func([]byte) (measure.Values, error)) error {
	for _, path := range paths {
		log, err := c.read("from-log", "from-log", path)
		if err != nil {
			return err
		}
		v, err := read(log)
		if err := c.add(v, err, &c.observed); err != nil {
			return err
		}
	}
	return nil
}

func computeSNPCommand(a *adminFlags) *cobra.Command {
	var direct directFlags
	var firmware string
	s := measure.SNP{}
	c := &cobra.Command{
		Use: "snp", Short: "Predict the launch digest of an AMD SEV-SNP guest",
		Long: `Predict MEASUREMENT of an AMD SEV-SNP guest of QEMU or of Amazon EC2. A direct boot
(--kernel) is QEMU's with kernel-hashes=on and OVMF's AmdSev build.

Checked against another calculator's published results, not against hardware.`,
		Example: `  claviger reference compute snp --ovmf OVMF.amdsev.fd --vcpus 4 --vcpu-type EPYC-Milan --kernel vmlinuz --initrd initrd.img --cmdline "console=ttyS0"
  claviger reference compute snp --ovmf ovmf_img.fd --vcpus 2 --vcpu-type EPYC-Milan --vmm ec2 --output yaml`,
		Args: noArgs,
	}
	c.RunE = a.compute("snp", attest.TypeSNP, func(c *computation) error {
		if firmware == "" {
			return fmt.Errorf("%w: --ovmf is missing", errUsage)
		}
		var err error
		if s.Firmware, err = c.read("firmware", "ovmf", firmware); err != nil {
			return err
		}
		boot, err := direct.read(c)
		if err != nil {
			return err
		}
		if boot != nil {
			s.Kernel, s.Initrd, s.Cmdline = boot.Kernel, boot.Initrd, boot.Cmdline
		}
		c.say("%d vcpus %s, vmm %s, guest features %#x", s.VCPUs, s.VCPUType, s.VMM, s.GuestFeatures)
		v, err := s.Digest()
		return c.add(v, err, &c.computed, &c.notSeen)
	})
	direct.register(c, false)
	f := c.Flags()
	f.StringVar(&firmware, "ovmf", "", "firmware image")
	f.IntVar(&s.VCPUs, "vcpus", 1, "number of virtual processors")
	f.StringVar(&s.VCPUType, "vcpu-type", "EPYC-Milan", "QEMU's model of processor, also with a version (EPYC-v4): "+strings.Join(measure.VCPUTypes(), ", "))
	f.StringVar(&s.VMM, "vmm", measure.QEMU, "what launches the guest: qemu, ec2")
	f.Uint64Var(&s.GuestFeatures, "guest-features", 0x1, "SEV_FEATURES: 0x1, or 0x21 with debug swap, which some versions of KVM add by themselves")
	return c
}

func computeTDXCommand(a *adminFlags) *cobra.Command {
	var direct directFlags
	var firmware string
	var logs []string
	c := &cobra.Command{
		Use: "tdx", Short: "Predict MRTD and RTMRs of an Intel TDX guest",
		Long: `Predict what an Intel TDX guest of QEMU measures:

  --firmware  mrtd, of OVMF with TDX support in one file; two values, for the two orders in which
              VMMs add the same memory
  --kernel    a direct boot: rtmr1 and rtmr2; rtmr1 has two values, for older and newer OVMF
  --from-log  rtmr0 from a guest's event log (/sys/firmware/acpi/tables/data/CCEL): it has the ACPI
              tables, which depend on the whole machine

Not checked against hardware: there was none. docs/reference-values.md says what was.`,
		Example: `  claviger reference compute tdx --firmware OVMF.inteltdx.fd
  claviger reference compute tdx --firmware OVMF.fd --kernel vmlinuz --initrd initrd.img --cmdline "console=ttyS0" --memory 4G --from-log CCEL > td.yaml`,
		Args: noArgs,
	}
	c.RunE = a.compute("tdx", attest.TypeTDX, func(c *computation) error {
		if firmware != "" {
			fw, err := c.read("firmware", "firmware", firmware)
			if err != nil {
				return err
			}
			v, err := measure.MRTD(fw)
			if err := c.add(v, err, &c.computed, &c.notSeen); err != nil {
				return err
			}
		}
		boot, err := direct.read(c)
		if err != nil {
			return err
		}
		if boot != nil {
			v, err := boot.TDX()
			if err := c.add(v, err, &c.computed, &c.notSeen); err != nil {
				return err
			}
		}
		return c.observe(logs, measure.ObservedTDX)
	})
	direct.register(c, true)
	f := c.Flags()
	f.StringVar(&firmware, "firmware", "", "firmware image")
	f.StringArrayVar(&logs, "from-log", nil, "event log of a guest to take rtmr0 from; repeat for other sizes of machine")
	return c
}
