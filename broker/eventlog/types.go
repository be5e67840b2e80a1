package eventlog

import "fmt"

// TypeName returns the TCG's name of an event type, or its number. The type is
// not covered by the event's digest.
func TypeName(t uint32) string {
	switch t {
	case 0x00:
		return "EV_PREBOOT_CERT"
	case 0x01:
		return "EV_POST_CODE"
	case EVNoAction:
		return "EV_NO_ACTION"
	case 0x04:
		return "EV_SEPARATOR"
	case 0x05:
		return "EV_ACTION"
	case 0x06:
		return "EV_EVENT_TAG"
	case 0x07:
		return "EV_S_CRTM_CONTENTS"
	case 0x08:
		return "EV_S_CRTM_VERSION"
	case 0x09:
		return "EV_CPU_MICROCODE"
	case 0x0a:
		return "EV_PLATFORM_CONFIG_FLAGS"
	case 0x0b:
		return "EV_TABLE_OF_DEVICES"
	case 0x0c:
		return "EV_COMPACT_HASH"
	case EVIPL:
		return "EV_IPL"
	case 0x0e:
		return "EV_IPL_PARTITION_DATA"
	case 0x80000001:
		return "EV_EFI_VARIABLE_DRIVER_CONFIG"
	case 0x80000002:
		return "EV_EFI_VARIABLE_BOOT"
	case 0x80000003:
		return "EV_EFI_BOOT_SERVICES_APPLICATION"
	case 0x80000004:
		return "EV_EFI_BOOT_SERVICES_DRIVER"
	case 0x80000005:
		return "EV_EFI_RUNTIME_SERVICES_DRIVER"
	case 0x80000006:
		return "EV_EFI_GPT_EVENT"
	case 0x80000007:
		return "EV_EFI_ACTION"
	case 0x80000008:
		return "EV_EFI_PLATFORM_FIRMWARE_BLOB"
	case 0x80000009:
		return "EV_EFI_HANDOFF_TABLES"
	case 0x8000000a:
		return "EV_EFI_PLATFORM_FIRMWARE_BLOB2"
	case 0x8000000b:
		return "EV_EFI_HANDOFF_TABLES2"
	case 0x8000000c:
		return "EV_EFI_VARIABLE_BOOT2"
	case 0x800000e0:
		return "EV_EFI_VARIABLE_AUTHORITY"
	}
	return fmt.Sprintf("%#x", t)
}
