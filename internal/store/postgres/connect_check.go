package postgres

// CheckURL fails with Invalid for a URL that Connect does not take. It connects to nothing, and shows no password.
func CheckURL(url string) error {
	_, err := parseURL(url)
	return err
}
