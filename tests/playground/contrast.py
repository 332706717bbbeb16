"""How well a text of a page can be read."""

from typing import Any


def contrast(page: Any, selector: str) -> float:
    """WCAG's contrast of a text with what is behind it."""
    return page.evaluate(
        """(selector) => {
      const light = (color) => {
        const [r, g, b] = color.match(/[\\d.]+/g).slice(0, 3).map((v) => v / 255)
          .map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
        return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
      const element = document.querySelector(selector);
      let behind = element;
      const ground = () => getComputedStyle(behind).backgroundColor;
      while (/, 0\\)$|transparent/.test(ground())) behind = behind.parentElement;
      const [a, b] = [getComputedStyle(element).color, ground()].map(light);
      return (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05); }""",
        selector,
    )
