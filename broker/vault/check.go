package vault

// Check names the field that is wrong.
func (c Config) Check() error { return c.check() }
